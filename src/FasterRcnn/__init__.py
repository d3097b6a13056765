"""Faster R-CNN with a ResNet-50 backbone and a feature pyramid, as MindSpore cells."""
