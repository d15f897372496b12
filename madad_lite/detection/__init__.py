"""Anomaly maps of many scans, as files."""
