"""What machine this is, and where findings about it are kept. Imports nothing of ours but errors."""
