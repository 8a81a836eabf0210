"""A model that a server runs, with everything but its weights here: prompts, tokens, tools, chats."""
