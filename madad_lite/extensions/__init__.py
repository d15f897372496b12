"""What is ours and not the paper's: lesion-like regions in training, neighbouring slices, the weight of
intensity.
"""
