"""Which words of a text carried its scores."""
