"""From messages to token ids, and from an answer's text to tool calls."""
