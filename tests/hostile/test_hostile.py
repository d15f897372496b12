"""Every hostile case, through the one runner in case.py."""

import arrays
import checkpoints
import manifests
import pytest
from case import check

CASES = [*manifests.CASES, *arrays.CASES, *checkpoints.CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_is_refused_in_one_line_and_leaves_everything_as_it_was(case, tmp_path):
    check(case, tmp_path)


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 150
