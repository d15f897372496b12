"""The shipped models, and how a model's folder is found and read."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent  # the shipped models lie here, one folder each
SHARED_AUTOENCODER = WEIGHTS / "autoencoder"  # the same in all of them, so it lies there once


def shipped() -> list[str]:
    """Names of the shipped weights."""
    return sorted(p.parent.name for p in WEIGHTS.glob("*/model_index.json"))
