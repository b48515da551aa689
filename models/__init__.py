"""All that is true of a model wherever it runs.

Owns: digests, canonical JSON, release manifests, the content-addressed store, engine Protocols and
adapters, OpenAI wire types, prompt templates, probes. Refuses: the network, torch, knowing about
devices or hubs.
"""
