"""Decision models: questions about one text in, a probability for each of them out."""
