"""Inference: the predictor, views of an image, runtimes, the video pipeline, tracking and counting."""
