"""Darknet networks: exact readers and writers of .cfg and .weights files, and the networks as registered models."""
