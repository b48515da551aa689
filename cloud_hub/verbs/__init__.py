"""The verbs of ``outpost-hub``, one module each: a click command and the adapters that it builds."""
