"""Thresholds from validation: pooled Dice lets the large lesions decide, the mean of patients each one alike."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import calibration  # noqa: E402

from madad_lite.evaluation import metrics  # noqa: E402
from madad_lite.evaluation.compare import LabelledSlices  # noqa: E402


def patients():
    """One patient with a large lesion of score 0.6 amid 0.5, and two with a small one of score 0.3 amid 0.1."""
    image = torch.zeros(3, 1, 16, 16)
    lesion = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    lesion[0, 0, :8], lesion[1:, 0, :2, :2] = True, True
    score = torch.full(image.shape, 0.1)
    score[0] = 0.5
    score[lesion] = 0.3
    score[0][lesion[0]] = 0.6
    names = np.array(["a", "b", "c"])
    return score, LabelledSlices(image, torch.ones_like(lesion), lesion, names, names, 2.0)


def test_the_two_rules_disagree_where_one_lesion_is_most_of_all_voxels():
    score, s = patients()
    pooled = metrics.pooled_max_dice(score, s.lesion, s.brain)[1]
    by_patients = calibration.by_patients(score, s)
    assert 0.5 < pooled <= 0.6 and 0.1 < by_patients <= 0.3
    assert np.allclose(calibration.dice_of_patients(score, s, 0.55), [1, 0, 0])
    assert np.allclose(calibration.dice_of_patients(score, s, by_patients), [2 / 3, 1, 1])


def test_a_line_says_what_is_lost_and_what_is_marked_in_healthy_brains(capsys):
    score, s = patients()
    healthy = s.take(np.array([1]))
    alone = torch.where(healthy.brain, 0.1, 0.0)
    alone[0, 0, 0, :8] = 0.9
    calibration.report("set", score, s, {"pooled": 0.55}, alone, healthy)
    cells = [c.strip() for c in capsys.readouterr().out.split("|")[1:-1]]
    both = 2 * 128 / (128 + 128 + 8)
    assert cells[:4] == ["set", "pooled", "0.550", f"{both:.3f}"] and cells[5] == "0.000"
    assert cells[7] == f"{100 * 8 / 256:.3f} %"
