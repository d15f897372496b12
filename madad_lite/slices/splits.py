"""Who trains, who validates, who tests: always by subject, so that nobody is in two splits.

A model of the normal brain trains on normal subjects. Patients are for validation and test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from madad_lite.errors import ScanError
from madad_lite.files import read_json
from madad_lite.scans.find import ScanFiles

SPLITS = ("train", "val", "test")


def split_subjects(
    subjects: Iterable[str],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    assigned: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{subject: "train", "val" or "test"}; the counts follow `fractions`, and no split stays empty if that is
    possible.

    What is promised: the same names and seed give the same splits, in any order. Subjects in `assigned` keep the
    split they have there, whoever comes or goes; a prepared folder keeps them for everyone that it has ever
    seen. Without `assigned`, another set of names may be split otherwise: counts that follow the fractions
    with five subjects, too, cannot be had from each name alone.
    With very few subjects training comes first; where nothing trains, the test split does.
    """
    fractions = tuple(float(f) for f in fractions)
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(
            f"fractions must be three numbers >= 0 that add up to 1, for train, val, test; not {fractions}"
        )
    share = dict(zip(SPLITS, fractions))
    wanted = [s for s in (SPLITS if fractions[0] else ("test", "val")) if share[s]]
    subjects = set(subjects)
    result = {s: split for s, split in (assigned or {}).items() if s in subjects}
    counts = {s: sum(v == s for v in result.values()) for s in SPLITS}
    # the order is a shuffle by hash: it does not change for the others when a subject is added
    for subject in sorted(
        subjects - result.keys(),
        key=lambda s: hashlib.sha256(f"{seed}/{s}".encode("utf-8", "surrogatepass")).digest(),
    ):
        empty = [s for s in wanted if not counts[s]]
        split = empty[0] if empty else max(wanted, key=lambda s: share[s] * len(subjects) - counts[s])
        result[subject] = split
        counts[split] += 1
    return dict(sorted(result.items()))


def read_splits(splits: Mapping[str, Sequence[str]] | str | Path) -> dict[str, list[str]]:
    """A mapping or JSON file {"train": [subject, ...], "val": [...], "test": [...]}, checked."""
    name, wanted = "splits", 'must be {"train": [subjects], "val": [subjects], "test": [subjects]}'
    if not isinstance(splits, Mapping):
        name = str(splits)
        splits = read_json(splits, hint="it " + wanted)
    if (
        not isinstance(splits, Mapping)
        or set(splits) - set(SPLITS)
        or any(isinstance(v, str) or not isinstance(v, Iterable) for v in splits.values())
    ):
        raise ScanError(f"{name}: {wanted}")
    result = {s: sorted({str(subject) for subject in splits.get(s, ())}) for s in SPLITS}
    everyone = [subject for s in SPLITS for subject in result[s]]
    if twice := sorted({s for s in everyone if everyone.count(s) > 1}):
        raise ScanError(f"{name}: {twice[0]} is in two splits; a subject can be in one only")
    return result


def assign_splits(
    scans: Sequence[ScanFiles],
    fractions: Sequence[float],
    seed: int,
    *,
    splits: Mapping[str, Sequence[str]] | None = None,
    patients_in_train: bool = False,
    assigned: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{subject: split} of the subjects that are to be prepared: as given in `splits`, else by
    `split_subjects`.
    """
    if splits is not None:
        there = {s.subject for s in scans}
        return {subject: split for split in SPLITS for subject in splits[split] if subject in there}
    patients = {s.subject for s in scans if s.group == "patient"}
    # a model of the normal brain trains on normal subjects: patients are for validation and test, half each
    of_patients = fractions if patients_in_train else (0.0, 0.5, 0.5)
    normal = split_subjects({s.subject for s in scans} - patients, fractions, seed, assigned=assigned)
    # who was taken for normal before a lesion mask was added does not stay in training
    kept = {s: v for s, v in (assigned or {}).items() if v != "train" or patients_in_train}
    return normal | split_subjects(patients, of_patients, seed, assigned=kept)
