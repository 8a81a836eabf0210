"""What of documents belongs to a question, where all of them don't fit: passages, ranked by vectors and by words."""
