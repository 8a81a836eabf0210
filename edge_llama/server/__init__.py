"""The HTTP door: what OpenAI's and Anthropic's clients speak, in front of models in processes of their own.

One file for each thing: ``guard`` (who may ask, and how much), ``pool`` (which models are loaded), ``asking`` (one
neutral request to a model, and its answers), ``events`` (answers as they come), ``failures`` (errors in each API's
own form), ``fields`` (what a request may say, and what comes of it), ``handling`` (what an endpoint does). ``openai``
and ``anthropic`` translate between that and their clients. It needs the extra ``serve``.
"""
