"""What OpenAI's clients speak: chat completions, completions, embeddings, models.

Each API's requests are in a file of fields, its responses in one of objects: together they are its part of the OpenAPI
document. What lies between is translated to what every API asks of a model (:mod:`edge_llama.server.asking`).
"""
