"""Losses, each registered, and the assignment of objects to cells."""
