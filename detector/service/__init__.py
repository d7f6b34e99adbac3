"""The HTTP service: pictures in, detections out, on the models that the package opens."""
