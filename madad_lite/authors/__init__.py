"""The authors' own checkpoints and folders, read safely and written."""
