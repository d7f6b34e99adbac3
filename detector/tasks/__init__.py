"""The tasks that a network can be trained for."""
