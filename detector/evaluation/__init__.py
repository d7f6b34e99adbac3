"""COCO numbers."""
