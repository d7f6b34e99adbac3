"""What is wrong with a data set before it is trained on: findings, figures, suggestions, and a page of them."""
