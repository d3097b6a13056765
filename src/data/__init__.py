"""The way from a COCO json and its images to batches: labels, MindRecord files, augmentation."""
