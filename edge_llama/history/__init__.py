"""Conversations kept on this machine."""
