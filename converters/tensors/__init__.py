"""Lazy views of tensors: values that know their source and how rows of it are read."""
