"""From a COCO json and its images to batches: labels, MindRecord files, augmentation."""
