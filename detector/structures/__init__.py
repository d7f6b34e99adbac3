"""Data types that flow between the parts: samples, batches, detections, boxes, the letterbox and box selection."""
