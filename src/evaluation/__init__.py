"""Evaluate a detector: COCO metrics of a network on labelled images."""
