"""A model at work: the thread that owns the towers, KV caches, sessions."""
