"""Texts of some decisions, for people to look at: sealed, kept for a time, and off by default."""
