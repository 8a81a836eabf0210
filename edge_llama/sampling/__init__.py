"""How the next token is chosen: options, our own sampler, and what constrains an answer."""
