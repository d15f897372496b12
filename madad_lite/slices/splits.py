"""Who trains, who validates, who tests: always by subject, so that nobody is in two splits.

A model of the normal brain trains on normal subjects. Patients are for validation and test.
"""

from __future__ import annotations

import hashlib
from collections import Counter
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
    """{subject: "train", "val" or "test"}, from the subject's name alone: a hash of seed and name is a number in
    0..1, which lies in the range of one split. So new subjects never move old ones, in whatever folder, and a larger
    share for training only moves others into it. The counts follow `fractions` about as closely as drawing does.

    One exception: a split that would stay empty gets the subject whose number is the nearest to its range. It may go
    back when others come, unless it is in `assigned`: those subjects keep the split they have there, and a prepared
    folder keeps them for everyone that it has ever seen. With very few subjects training comes first; where nothing
    trains, the test split does. ValueError: fractions that do not add up to 1.
    """
    share = _shares(fractions)
    wanted, subjects = _wanted(share), set(subjects)
    kept = {s: split for s, split in (assigned or {}).items() if s in subjects}
    new = sorted(subjects - kept.keys(), key=lambda s: _digest(s, seed))
    place = {s: int.from_bytes(_digest(s, seed)[:8], "big") / 2**64 for s in new}
    ends = {"train": share["train"], "val": share["train"] + share["val"], "test": 1.0}
    ranges = {split: (ends[split] - share[split], ends[split]) for split in wanted}

    def apart(subject: str, split: str) -> float:
        low, high = ranges[split]
        return max(low - place[subject], place[subject] - high, 0.0)

    result = kept | {s: min(wanted, key=lambda split: apart(s, split)) for s in new}
    for number, split in enumerate(wanted):
        counts = Counter(result.values())
        spare = [s for s in new if counts[result[s]] > 1 or result[s] in wanted[number + 1 :]]
        if not counts[split] and spare:
            result[min(spare, key=lambda s: apart(s, split))] = split
    return dict(sorted(result.items()))


def split_by_count(
    subjects: Iterable[str],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    assigned: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """As `split_subjects`, but the counts follow `fractions` as closely as they can, also with five subjects, and so
    depend on the other names: a new subject may move old ones that are not in `assigned`.

    For the simulated cohort: it has few subjects, the same ones for whoever simulates it, and the lessons' numbers
    belong to this split of them.
    """
    share = _shares(fractions)
    wanted, subjects = _wanted(share), set(subjects)
    result = {s: split for s, split in (assigned or {}).items() if s in subjects}
    counts = {s: sum(v == s for v in result.values()) for s in SPLITS}
    for subject in sorted(subjects - result.keys(), key=lambda s: _digest(s, seed)):
        empty = [s for s in wanted if not counts[s]]
        split = empty[0] if empty else max(wanted, key=lambda s: share[s] * len(subjects) - counts[s])
        result[subject] = split
        counts[split] += 1
    return dict(sorted(result.items()))


def _shares(fractions: Sequence[float]) -> dict[str, float]:
    fractions = tuple(float(f) for f in fractions)
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:  # NaN neither
        raise ValueError(
            f"fractions must be three numbers >= 0 that add up to 1, for train, val, test; not {fractions}"
        )
    return dict(zip(SPLITS, fractions))


def _wanted(share: Mapping[str, float]) -> list[str]:
    """The splits that somebody is to be in, the most important first."""
    return [s for s in (SPLITS if share["train"] else ("test", "val")) if share[s]]


def _digest(subject: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{subject}".encode("utf-8", "surrogatepass")).digest()


def read_splits(splits: Mapping[str, Sequence[str]] | str | Path) -> dict[str, list[str]]:
    """A mapping or JSON file {"train": [subject, ...], "val": [...], "test": [...]}, checked."""
    name, wanted = "splits", 'must be {"train": [subjects], "val": [subjects], "test": [subjects]}'
    if not isinstance(splits, Mapping):
        name = str(splits)
        splits = read_json(splits, hint="it " + wanted)
    good = isinstance(splits, Mapping) and not set(splits) - set(SPLITS)
    for subjects in splits.values() if good else ():  # a subject may be called 7
        good &= isinstance(subjects, Iterable) and not isinstance(subjects, (str, bytes, Mapping))
        good = good and all(type(subject) in (str, int) for subject in subjects)
    if not good:
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
    by_count: bool = False,
) -> dict[str, str]:
    """{subject: split} of the subjects that are to be prepared: as given in `splits`, else by `split_subjects`, or
    `split_by_count`.
    """
    if splits is not None:
        there = {s.subject for s in scans}
        return {subject: split for split in SPLITS for subject in splits[split] if subject in there}
    divided = split_by_count if by_count else split_subjects
    patients = {s.subject for s in scans if s.group == "patient"}
    # a model of the normal brain trains on normal subjects: patients are for validation and test, half each
    of_patients = fractions if patients_in_train else (0.0, 0.5, 0.5)
    normal = divided({s.subject for s in scans} - patients, fractions, seed, assigned=assigned)
    # who was taken for normal before a lesion mask was added does not stay in training
    kept = {s: v for s, v in (assigned or {}).items() if v != "train" or patients_in_train}
    return normal | divided(patients, of_patients, seed, assigned=kept)
