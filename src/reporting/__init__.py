"""Make plots and pages of a run from the files in its folder, without MindSpore."""
