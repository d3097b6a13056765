"""Labels of other formats, converted to COCO's json."""
