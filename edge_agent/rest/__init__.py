"""The local REST API: routes, how bodies are read and answers written, who is let in."""
