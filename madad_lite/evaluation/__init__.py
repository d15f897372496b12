"""How well anomaly maps find lesions: counts, metrics, the comparison of methods, the paper's two
experiments.
"""
