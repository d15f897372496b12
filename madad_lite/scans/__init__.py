"""NIfTI in and out: checks, registration to MNI152, brain extraction, normalisation, cutting into slices, the
way back.
"""
