"""What a chat in the terminal works on: its commands, settings, pictures and history."""
