"""Lazy views of tensors: joined, transposed, with scales that wait for their turn."""
