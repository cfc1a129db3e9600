"""What was found and changed, for people: text and pictures."""
