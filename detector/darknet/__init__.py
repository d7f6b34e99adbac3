"""Darknet networks: their .cfg and .weights files read and written exactly, and run as models of the registry."""
