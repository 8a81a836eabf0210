"""Bases of other kinds: Llama 4's towers, Meta's folders; and an adapter whose files are damaged."""
