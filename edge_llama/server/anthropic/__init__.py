"""Anthropic's interface: ``/v1/messages`` and ``/v1/messages/count_tokens``.

``fields`` and ``blocks`` are what a request may say, ``conversation`` makes messages of it, ``writer`` tells of answers
and ``objects`` describes that; ``messages`` has the endpoints.
"""
