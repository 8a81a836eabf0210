"""edge-llama."""
