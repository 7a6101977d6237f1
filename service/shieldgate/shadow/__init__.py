"""A candidate that judges live traffic beside what is in force, and decides nothing."""
