"""Models that a server runs: token ids go there and come back, by HTTP."""
