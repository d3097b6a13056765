"""Pictures and pages of a run, from what it left in its folder; needs no MindSpore."""
