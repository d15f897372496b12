"""Every hostile case, through the runners in case.py and command.py."""

import arrays
import checkpoints
import commands
import headers
import manifests
import models
import nifti
import outputs
import pytest
import world
from case import check
from command import check_command
from tiny_models import tiny  # noqa: F401 (a fixture)

CASES = [*manifests.CASES, *arrays.CASES, *checkpoints.CASES]
COMMANDS = [*nifti.CASES, *headers.CASES, *commands.CASES, *models.CASES, *outputs.CASES]


@pytest.fixture(scope="module", autouse=True)
def one_world(tiny):  # noqa: F811
    yield
    world.remove()


def name_of(case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_is_refused_in_one_line_and_leaves_everything_as_it_was(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("case", COMMANDS, ids=name_of)
def test_a_command_is_refused_in_one_line_and_leaves_everything_as_it_was(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_command(case, tmp_path)


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in (*CASES, *COMMANDS)]
    assert len(names) == len(set(names)) >= 300
