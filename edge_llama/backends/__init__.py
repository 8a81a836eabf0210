"""Engines that run a tower. Each keeps the Protocols of :mod:`edge_llama.backends.base`."""
