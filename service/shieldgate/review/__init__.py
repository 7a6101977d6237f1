"""What a person should look at, and the labels that come back."""
