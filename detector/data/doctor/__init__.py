"""Check of a data set before training: findings, figures, suggestions, and a report of them."""
