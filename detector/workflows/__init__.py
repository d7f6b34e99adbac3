"""Workflows: each verb of the toolkit from start to end, without printing."""
