"""Engines in processes of their own: what passes to and from them, and who is in memory."""
