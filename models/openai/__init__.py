"""OpenAI's HTTP API as bytes: requests, responses, errors and the stream encoding.

Pure. Owns the letter of the wire that client libraries rely on, for the edge and the hub alike.
Refuses: HTTP itself, running anything, and every option that it does not know to be honoured.
"""
