"""Federated Faster R-CNN: the detector, the data path, the roles and the launchers."""
