"""Augmentation of training images: settings, geometry, patches, colour, and the recipe that applies them in order."""
