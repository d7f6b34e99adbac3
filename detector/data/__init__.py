"""Data sets, augmentation and the loader."""
