"""Losses: target assignment and what is minimised, each registered."""
