"""Simulated subjects: the embedded cohort, its lesions, other contrasts."""
