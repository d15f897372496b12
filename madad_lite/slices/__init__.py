"""Prepared slices on disk: the manifest, who trains and who tests, datasets, augmentation."""
