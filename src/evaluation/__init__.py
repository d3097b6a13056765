"""How good a detector is: COCO's figures of a network on labelled images."""
