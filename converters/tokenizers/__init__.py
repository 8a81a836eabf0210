"""Tokenizer files, read into a Vocabulary and written from one: a file per direction or kind."""
