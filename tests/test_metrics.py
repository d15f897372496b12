"""Metrics: against the authors' own numbers, scikit-learn, plain loops over all thresholds, and cases done by
hand.
"""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from madad_lite.evaluation import metrics, sums
from madad_lite.evaluation.stream import Stream


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    """See test_scoring.py."""
    with np.load(Path(__file__).parent / "data" / "parity_scoring.npz") as arrays:
        return dict(arrays)


def cohort(n_subjects=6, per_subject=5, size=12, seed=0, steps=None, signal=0.4):
    """(score, truth, brain, subjects): every third subject is normal, one more slice of each patient too."""
    rng = np.random.default_rng(seed)
    n = n_subjects * per_subject
    subjects = np.repeat([f"sub-{i}" for i in range(n_subjects)], per_subject)
    brain = rng.random((n, size, size)) < 0.8
    truth = rng.random((n, size, size)) < rng.choice([0.005, 0.03, 0.2], size=n)[:, None, None]
    truth[(np.arange(n) // per_subject % 3 == 0) | (np.arange(n) % per_subject == 0)] = False
    score = rng.random((n, size, size)) * (1 - signal) + signal * truth * rng.random((n, size, size))
    if steps:
        score = np.round(score * steps) / steps
    return score.astype(np.float32), truth, brain, subjects


def plain_dice(found, truth):
    total = found.sum() + truth.sum()
    return 2 * (found & truth).sum() / total if total else 1.0


def plain_per_image(score, truth, brain):
    rows = list(zip(score, truth, brain))
    return np.array([[plain_dice((s >= t) & b, r & b) for t in metrics.THRESHOLDS] for s, r, b in rows])


# --- the authors' numbers
# -------------------------------------------------------------------------------------------


def test_metrics_are_the_authors(official):
    score, truth = official["score_map"], official["metric_truth"]
    assert metrics.per_image_max_dice(score, truth)[0] == pytest.approx(
        official["metric_dice_per_image_max"], abs=1e-5
    )
    assert metrics.pooled_max_dice(score, truth)[0] == pytest.approx(
        official["metric_dice_pooled_max"], abs=1e-5
    )
    assert metrics.average_precision(score, truth) == pytest.approx(official["metric_ap"], abs=1e-5)
    assert metrics.auroc(score, truth) == pytest.approx(official["metric_auroc"], abs=1e-5)


def test_evaluate_gives_the_authors_numbers(official):
    result = metrics.evaluate(official["score_map"], official["metric_truth"])
    names = {"pooled_max_dice": "dice_pooled_max", "per_image_max_dice": "dice_per_image_max"}
    for ours, theirs in {**names, "ap": "ap", "auroc": "auroc"}.items():
        assert result[ours] == pytest.approx(official[f"metric_{theirs}"], abs=1e-5)


# --- by hand
# --------------------------------------------------------------------------------------------------------

# slice 0: found in this order: lesion, healthy, lesion, healthy. slice 1: lesion last but one. slice 2: no
# lesion
SCORE = np.array([[[0.9, 0.8, 0.6, 0.1]], [[0.7, 0.2, 0.5, 0.05]], [[0.15, 0.0, 0.0, 0.0]]], dtype=np.float32)
TRUTH = np.array([[[1, 0, 1, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 0]]])


def test_pooled_dice_by_hand():
    # order of all voxels: .9 L, .8, .7, .6 L, .5, .2 L: Dice 2/4, 2/5, 2/6, 4/7, 4/8, 6/9
    dice, threshold = metrics.pooled_max_dice(SCORE, TRUTH)
    assert dice == pytest.approx(6 / 9) and 0.15 < threshold < 0.2
    dice, threshold = metrics.pooled_max_dice(SCORE[:1], TRUTH[:1])
    assert dice == pytest.approx(4 / 5) and 0.1 < threshold < 0.6


def test_per_image_dice_by_hand():
    # above .8: 2/3, 0, 1; in (.5, .6]: 4/5, 0, 1; in (.15, .2]: 4/5, 2/4, 1
    dice, threshold = metrics.per_image_max_dice(SCORE, TRUTH)
    assert dice == pytest.approx((4 / 5 + 1 / 2 + 1) / 3) and 0.15 < threshold <= 0.2
    # a find in the slice without lesion costs it everything
    assert metrics.dice_at(SCORE, TRUTH, 0.14)["per_image_all"] == pytest.approx((4 / 5 + 1 / 2) / 3)


def test_own_threshold_dice_by_hand():
    score = SCORE.copy()
    score[1] = [[0.3, 0.95, 0.2, 0.1]]
    assert metrics.own_threshold_dice(score, TRUTH) == pytest.approx((4 / 5 + 1) / 2)
    assert metrics.own_threshold_dice(SCORE, TRUTH) == pytest.approx((4 / 5 + 1 / 2) / 2)


def test_dice_at_by_hand():
    at = metrics.dice_at(SCORE, TRUTH, 0.6)  # >=: the voxel at .6 itself is found
    assert at["pooled"] == pytest.approx(4 / 7)
    assert at["per_image"] == pytest.approx((4 / 5 + 0) / 2)
    assert at["per_image_all"] == pytest.approx((4 / 5 + 0 + 1) / 3)


def test_nothing_to_find():
    at = metrics.dice_at(SCORE[2:], TRUTH[2:], 0.5)
    assert at["pooled"] == at["per_image_all"] == 1 and np.isnan(at["per_image"])
    at = metrics.dice_at(SCORE[2:], TRUTH[2:], 0.1)
    assert at["pooled"] == at["per_image_all"] == 0
    assert metrics.per_image_max_dice(SCORE[2:], TRUTH[2:])[0] == 1


def test_perfect_constant_and_reversed_scores():
    truth = cohort()[1]
    assert metrics.pooled_max_dice(truth.astype(float), truth) == (1.0, 0.5)
    assert (
        metrics.average_precision(truth.astype(float), truth)
        == metrics.auroc(truth.astype(float), truth)
        == 1
    )
    share = truth.mean()
    constant = np.full(truth.shape, 0.3)
    assert metrics.pooled_max_dice(constant, truth)[0] == pytest.approx(2 * share / (1 + share))
    assert metrics.average_precision(constant, truth) == pytest.approx(share)
    assert metrics.auroc(constant, truth) == pytest.approx(0.5)
    assert metrics.auroc(1.0 - truth, truth) == 0


def test_only_the_brain_counts():
    score, truth, brain, _ = cohort()
    changed, moved = np.where(brain, score, 1 - score), truth & brain
    dice = (metrics.pooled_max_dice, metrics.per_image_max_dice, metrics.own_threshold_dice)
    for metric in (*dice, metrics.average_precision, metrics.auroc):
        assert metric(score, truth, brain) == metric(changed, moved, brain) != metric(score, truth)


# --- plain loops
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 10])  # with 10 steps most scores are tied
@pytest.mark.parametrize("seed", [0, 1])
def test_against_plain_loops(seed, steps):
    score, truth, brain, _ = cohort(n_subjects=4, seed=seed, steps=steps)
    inside, lesion = score[brain], (truth & brain)[brain]
    dice, threshold = metrics.pooled_max_dice(score, truth, brain)
    assert dice == pytest.approx(max(plain_dice(inside >= t, lesion) for t in np.unique(inside)))
    for found in (
        inside >= threshold,
        inside > threshold,
    ):  # a threshold between two scores: both readings agree
        assert plain_dice(found, lesion) == pytest.approx(dice)
    expected = average_precision_score(lesion, inside)
    assert metrics.average_precision(score, truth, brain) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(score, truth, brain) == pytest.approx(roc_auc_score(lesion, inside), abs=1e-12)

    each = plain_per_image(score, truth, brain)
    dice, threshold = metrics.per_image_max_dice(score, truth, brain)
    assert (
        dice == pytest.approx(each.mean(0).max()) and threshold == metrics.THRESHOLDS[each.mean(0).argmax()]
    )
    rows = [(s, r & b, b) for s, r, b in zip(score, truth, brain) if (r & b).any()]
    own = [max(plain_dice((s >= t) & b, r) for t in np.unique(s[b])) for s, r, b in rows]
    assert metrics.own_threshold_dice(score, truth, brain) == pytest.approx(np.mean(own))
    at = metrics.dice_at(score, truth, 0.55, brain)
    assert at["pooled"] == pytest.approx(plain_dice(inside >= 0.55, lesion))
    column = each[:, 110]  # threshold 0.55
    assert at["per_image_all"] == pytest.approx(column.mean())
    assert at["per_image"] == pytest.approx(column[(truth & brain).any((1, 2))].mean())


@pytest.mark.parametrize("change", [np.sqrt, lambda s: s**3, lambda s: 5 * s - 2])
def test_rescaling_the_score_changes_nothing(change):
    score, truth, brain, _ = cohort()
    score = score.astype(np.float64)
    for metric in (metrics.average_precision, metrics.auroc, metrics.own_threshold_dice):
        assert metric(change(score), truth, brain) == pytest.approx(metric(score, truth, brain), abs=1e-12)
    dice, threshold = metrics.pooled_max_dice(score, truth, brain)
    changed = metrics.pooled_max_dice(change(score), truth, brain)
    assert changed[0] == dice
    assert ((change(score) >= changed[1]) == (score >= threshold))[brain].all()


def test_arrays_and_tensors_with_and_without_a_channel():
    score, truth, brain, subjects = cohort()
    options = {"threshold": 0.5, "n": 20}
    expected = metrics.evaluate(score, truth, brain=brain, subjects=subjects, **options)
    s, t, b = (torch.from_numpy(v)[:, None] for v in (score, truth, brain))
    assert metrics.evaluate(s, t, brain=b, subjects=subjects, **options) == expected
    assert metrics.evaluate(s, truth, brain=b.numpy(), subjects=list(subjects), **options) == expected
    half = torch.from_numpy(score).bfloat16().requires_grad_()
    assert metrics.auroc(half, truth) == metrics.auroc(half.detach().float().numpy(), truth)


# --- lesion size
# ----------------------------------------------------------------------------------------------------


def test_sizes_are_shares_of_the_brain():
    brain = np.zeros((5, 20, 20), bool)
    brain[:, :10] = True  # 200 voxels
    truth = np.zeros((5, 20, 20), bool)
    for i, voxels in enumerate((0, 1, 2, 10, 11)):  # 0, 0.5, 1, 5, 5.5 %
        truth[i].ravel()[:voxels] = True
    truth[0, 15] = True  # outside the brain
    assert metrics.lesion_size(truth, brain).tolist() == ["", "small", "medium", "medium", "large"]


def by_size(score, truth, brain=None, threshold=None):
    return metrics.evaluate(score, truth, brain=brain, threshold=threshold, intervals=False)["by_size"]


def test_sizes_part_the_lesion_slices():
    score, truth, brain, _ = cohort(n_subjects=9)
    size = metrics.lesion_size(truth, brain)
    result = by_size(score, truth, brain, threshold=0.6)
    assert sum(r["n"] for r in result.values()) == (truth & brain).any((1, 2)).sum()
    for name, found in result.items():
        rows = size == name
        part = (score[rows], truth[rows], brain[rows])
        assert found["n"] == rows.sum() > 0
        at = metrics.dice_at(*part[:2], 0.6, part[2])
        assert (found["pooled_dice"], found["per_image_dice"]) == (at["pooled"], at["per_image"])
        assert found["pooled_max_dice"] == metrics.pooled_max_dice(*part)[0]
        assert found["per_image_max_dice"] == metrics.per_image_max_dice(*part)[0]
        assert found["per_image_own_threshold_dice"] == metrics.own_threshold_dice(*part)
        assert (found["ap"], found["auroc"]) == (metrics.average_precision(*part), metrics.auroc(*part))


def test_sizes_without_a_threshold_use_the_best_pooled_one_of_all():
    score, truth, brain, _ = cohort()
    best = metrics.pooled_max_dice(score, truth, brain)[1]
    assert by_size(score, truth, brain) == by_size(score, truth, brain, best)


def test_a_size_that_does_not_occur_is_none():
    result = by_size(SCORE, TRUTH)  # 2 and 1 of 4 voxels: large
    assert result["large"]["n"] == 2 and result["small"]["n"] == result["medium"]["n"] == 0
    assert set(result["small"]) == set(result["large"])
    assert all(v is None for k, v in result["small"].items() if k != "n")


# --- intervals
# ------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "pooled_max_dice": lambda s, t, b: metrics.pooled_max_dice(s, t, b)[0],
    "per_image_max_dice": lambda s, t, b: metrics.per_image_max_dice(s, t, b)[0],
    "per_lesion_image_max_dice": lambda s, t, b: metrics.per_image_max_dice(
        *(v[t.any((1, 2))] for v in (s, t, b))
    )[0],
    "per_image_own_threshold_dice": metrics.own_threshold_dice,
    "ap": metrics.average_precision,
    "auroc": metrics.auroc,
    "pooled_dice": lambda s, t, b: metrics.dice_at(s, t, 0.55, b)["pooled"],
    "per_image_dice": lambda s, t, b: metrics.dice_at(s, t, 0.55, b)["per_image"],
}


@pytest.mark.parametrize("name", metrics.METRICS)
def test_intervals_from_sums_are_those_of_recomputing(name):
    score, truth, brain, subjects = cohort(steps=500)
    options = {"brain": brain, "threshold": 0.55, "n": 40, "seed": 3}
    fast = metrics.bootstrap_interval(name, score, truth, subjects, **options)
    slow = metrics.bootstrap_interval(FUNCTIONS[name], score, truth, subjects, **options)
    assert fast == pytest.approx(slow, abs=1e-3 if name == "auroc" else 1e-9)
    assert fast[0] < FUNCTIONS[name](score, truth, brain) < fast[1]


@pytest.mark.parametrize("name", ["pooled_max_dice", "ap", "auroc"])
def test_intervals_between_quantiles_stay_close(monkeypatch, name):
    score, truth, brain, subjects = cohort(n_subjects=9, per_subject=8)
    options = {"brain": brain, "n": 30, "seed": 1}
    exact = metrics.bootstrap_interval(FUNCTIONS[name], score, truth, subjects, **options)
    monkeypatch.setattr(sums, "BINS", 60)
    assert len(np.unique(score[truth & brain])) > 2 * sums.BINS
    binned = metrics.bootstrap_interval(name, score, truth, subjects, **options)
    assert binned != pytest.approx(exact, abs=1e-9) and binned == pytest.approx(exact, abs=2 / sums.BINS)


def test_intervals_are_repeatable_and_wider_at_a_higher_level():
    score, truth, brain, subjects = cohort()
    data = ("ap", score, truth, subjects)
    one, again, other = (metrics.bootstrap_interval(*data, brain=brain, seed=s) for s in (0, 0, 1))
    assert one == again != other
    wide = metrics.bootstrap_interval(*data, brain=brain, level=0.99)
    assert wide[0] < one[0] < one[1] < wide[1]


def test_intervals_cover_the_truth():
    """Forty subjects of a population: a 90 % interval holds the population's own value about nine times in
    ten.
    """
    rng = np.random.default_rng(0)
    truth = rng.random((600, 8, 8)) < 0.3
    strength = rng.random((600, 1, 1))  # some subjects' lesions are easier to see
    score = np.where(truth, strength * rng.random(truth.shape), 0.6 * rng.random(truth.shape))
    population = metrics.dice_at(score, truth, 0.3)["per_image"]
    covered = []
    for seed in range(100):
        rows = np.random.default_rng(seed).choice(600, 40)
        low, high = metrics.bootstrap_interval(
            "per_image_dice", score[rows], truth[rows], np.arange(40), threshold=0.3, n=200, level=0.9
        )
        covered.append(low <= population <= high)
    assert 0.82 <= np.mean(covered) <= 0.97


def test_subjects_are_drawn_not_slices():
    """Copies of a subject's slices say nothing new: the interval stays as wide as before."""
    score, truth, brain, subjects = cohort()
    one = metrics.bootstrap_interval("pooled_max_dice", score, truth, subjects, brain=brain)
    thrice = [np.concatenate([v] * 3) for v in (score, truth, subjects, brain)]
    assert metrics.bootstrap_interval("pooled_max_dice", *thrice[:3], brain=thrice[3]) == pytest.approx(one)


def test_difference_is_taken_on_the_same_resamples():
    score, truth, brain, subjects = cohort()
    options = {"brain": brain, "n": 60}
    assert metrics.difference_interval("ap", score, score, truth, subjects, **options) == [0.0, 0.0]
    better = np.clip(score + 0.02 * truth, 0, 1)  # a little better in every subject
    low, high = metrics.difference_interval("ap", better, score, truth, subjects, **options)
    assert 0 < low < high
    backwards = metrics.difference_interval("ap", score, better, truth, subjects, **options)
    assert backwards == pytest.approx([-high, -low])
    single = metrics.bootstrap_interval("ap", score, truth, subjects, **options)
    assert high - low < single[1] - single[0]  # what is common to both cancels
    by_function = metrics.difference_interval(
        metrics.average_precision, better, score, truth, subjects, **options
    )
    assert by_function == pytest.approx([low, high], abs=1e-9)


def test_difference_with_a_threshold_for_each_method():
    score, truth, brain, subjects = cohort()
    halved = score / 2
    options = {"brain": brain, "n": 30}
    same = metrics.difference_interval(
        "pooled_dice", score, halved, truth, subjects, threshold=(0.6, 0.3), **options
    )
    assert same == [0.0, 0.0]
    other = metrics.difference_interval(
        "pooled_dice", score, halved, truth, subjects, threshold=0.6, **options
    )
    assert other[0] > 0


# --- false positives
# ------------------------------------------------------------------------------------------------


def test_false_positive_volume_of_normal_subjects():
    score = np.zeros((5, 4, 4), np.float32)
    truth = np.zeros((5, 4, 4), bool)
    score[0, 0, :2] = 0.9  # a: 2 and 1 voxels in two slices
    score[1, 0, 0] = 0.5
    score[2] = 0.9  # b has a lesion in another slice: not a normal subject
    truth[3, 0, 0] = True
    subjects = ["a", "a", "b", "b", "c"]
    result = metrics.false_positive_volume(score, truth, subjects, 0.5, spacing=10.0)  # 1 mL a voxel
    volume = {"mean_ml": 1.5, "median_ml": 1.5, "max_ml": 3}
    assert result == pytest.approx({"subjects": 2, "brain_share": 3 / 64, **volume})
    brain = np.ones_like(truth)
    brain[0, 0, 0] = False
    result = metrics.false_positive_volume(score, truth, subjects, 0.5, brain=brain, spacing=2.0)
    assert result["max_ml"] == pytest.approx(2 * 0.008) and result["brain_share"] == pytest.approx(1 / 31)
    assert set(metrics.false_positive_volume(score, truth, subjects, 0.5)) == {"subjects", "brain_share"}


def test_no_normal_subject_is_none():
    result = metrics.false_positive_volume(SCORE, TRUTH, ["a"] * 3, 0.5, spacing=1.0)
    assert result == {"subjects": 0, "brain_share": None, "mean_ml": None, "median_ml": None, "max_ml": None}


# --- evaluate and table
# ---------------------------------------------------------------------------------------------


def test_evaluate_holds_everything_and_is_json():
    score, truth, brain, subjects = cohort(n_subjects=9)
    result = metrics.evaluate(score, truth, brain=brain, subjects=subjects, threshold=0.55, spacing=2.0, n=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lesion = (truth & brain).any((1, 2))
    assert (result["slices"], result["lesion_slices"], result["subjects"]) == (45, lesion.sum(), 9)
    assert result["lesion_share"] == pytest.approx((truth & brain).sum() / brain.sum())
    assert result["lesion_outside_brain"] == (truth & ~brain).sum() > 0
    dice, threshold = metrics.pooled_max_dice(score, truth, brain)
    assert (result["pooled_max_dice"], result["best_threshold"]) == (dice, threshold)
    own = metrics.own_threshold_dice(score, truth, brain)
    alone = metrics.per_image_max_dice(score[lesion], truth[lesion], brain[lesion])[0]
    both = result["per_image_own_threshold_dice"], result["per_lesion_image_max_dice"]
    assert both == pytest.approx((own, alone), abs=1e-12)
    assert alone < own
    at = result["dice_at_validation_threshold"]
    alone = metrics.dice_at(score, truth, 0.55, brain)
    assert {k: v for k, v in at.items() if "interval" not in k} == pytest.approx(alone, abs=1e-12)
    for name in metrics.METRICS:
        if name in metrics.AT_THRESHOLD:
            value, interval = (at[name.removesuffix("_dice") + end] for end in ("", "_interval"))
        else:
            value, interval = result[name], result[f"{name}_interval"]
        assert interval == metrics.bootstrap_interval(
            name, score, truth, subjects, brain=brain, threshold=0.55, n=50
        )
        assert interval[0] < value < interval[1]
    false = metrics.false_positive_volume(score, truth, subjects, 0.55, brain=brain, spacing=2.0)
    assert result["false_positives"] == false and false["subjects"] == 3
    for name, values in by_size(score, truth, brain, 0.55).items():
        found = {k: v for k, v in result["by_size"][name].items() if "interval" not in k}
        assert found == pytest.approx(values, abs=1e-12)
        low, high = result["by_size"][name]["pooled_dice_interval"]
        assert low < values["pooled_dice"] < high


def test_evaluate_without_options_gives_no_more_than_it_knows():
    score, truth, _, subjects = cohort()
    plain = metrics.evaluate(score, truth)
    assert not [
        k for k in plain if "interval" in k or "validation" in k or k in ("subjects", "false_positives")
    ]
    assert not [
        k for k in metrics.evaluate(score, truth, subjects=subjects, intervals=False) if "interval" in k
    ]
    one = metrics.evaluate(score, truth, subjects=["a"] * len(score))  # one subject: no interval
    assert one["subjects"] == 1 and not [k for k in one if "interval" in k]


def test_evaluate_without_any_lesion():
    score, truth, _, subjects = cohort()
    result = metrics.evaluate(score, np.zeros_like(truth), subjects=subjects, threshold=0.9, spacing=2.0)
    json.dumps(result, allow_nan=False)
    assert result["lesion_slices"] == 0 and result["false_positives"]["subjects"] == 6
    assert all(result[k] is None for k in ("pooled_max_dice", "per_lesion_image_max_dice", "ap", "auroc"))
    assert result["dice_at_validation_threshold"]["per_image"] is None
    assert " - |" in metrics.table({"a": result})


def test_evaluate_where_everything_is_lesion():
    result = metrics.evaluate(np.full((2, 4, 4), 0.5), np.ones((2, 4, 4)), subjects=["a", "b"], n=10)
    assert result["auroc"] is None and result["pooled_max_dice"] == result["ap"] == 1
    json.dumps(result, allow_nan=False)


def test_table_shows_pooled_and_per_image_dice_side_by_side():
    score, truth, brain, subjects = cohort()
    full = metrics.evaluate(score, truth, brain=brain, subjects=subjects, threshold=0.55, n=20)
    lines = metrics.table({"ours": full, "plain": metrics.evaluate(score, truth, brain=brain)}).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert len(lines) == 4 and len({len(c) for c in cells}) == 1 and set(cells[1]) == {"---"}
    assert cells[0][:3] == ["method", "max Dice, pooled", "max Dice, per lesion slice"]
    low, high = full["pooled_max_dice_interval"]
    assert cells[2][:2] == ["ours", f"{full['pooled_max_dice']:.3f} [{low:.2f}, {high:.2f}]"]
    assert cells[2][2].startswith(f"{full['per_lesion_image_max_dice']:.3f} [")
    assert cells[2][3].startswith(f"{full['dice_at_validation_threshold']['pooled']:.3f} [")
    assert cells[2][4].startswith(f"{full['dice_at_validation_threshold']['per_image']:.3f} [")
    assert cells[3][3:5] == ["-", "-"] and cells[3][5:] == [f"{full[k]:.3f}" for k in ("ap", "auroc")]


def test_a_thousand_large_slices_need_little_more_memory_than_they_take():
    score = np.random.default_rng(0).random((1000, 256, 256), dtype=np.float32)
    truth, brain = np.zeros(score.shape, bool), np.zeros(score.shape, bool)
    brain[:, 40:220, 50:200] = True
    truth[::2, 100:120, 100:120] = True
    score[truth] = score[truth] / 2 + 0.5
    tracemalloc.start()
    result = metrics.evaluate(score, truth, brain=brain, intervals=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * score.nbytes
    # lesion scores are uniform in [0.5, 1], healthy ones in [0, 1]
    assert result["auroc"] == pytest.approx(0.75, abs=1e-3)


# --- bad input
# ------------------------------------------------------------------------------------------------------

EMPTY = np.zeros_like(TRUTH)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.pooled_max_dice(SCORE, TRUTH[:2]), "one shape"),
        (lambda: metrics.pooled_max_dice(SCORE, TRUTH, TRUTH[:, :, :2]), "one shape"),
        (lambda: metrics.pooled_max_dice(SCORE[0], TRUTH[0]), r"\(N, H, W\)"),
        (lambda: metrics.pooled_max_dice(SCORE[:0], TRUTH[:0]), "not empty"),
        (lambda: metrics.auroc(np.where(SCORE > 0.8, np.nan, SCORE), TRUTH), "score holds NaN"),
        (lambda: metrics.auroc(np.where(SCORE > 0.8, np.inf, SCORE), TRUTH), "score holds NaN or infinite"),
        (lambda: metrics.auroc(SCORE, np.where(TRUTH, np.nan, 0)), "truth holds NaN"),
        (lambda: metrics.auroc(SCORE, np.ones_like(TRUTH)), "no healthy voxel"),
        (lambda: metrics.pooled_max_dice(SCORE, EMPTY), "no lesion voxel"),
        (lambda: metrics.own_threshold_dice(SCORE, EMPTY), "no lesion voxel"),
        (lambda: metrics.average_precision(SCORE, TRUTH, 1 - TRUTH), "no lesion voxel inside the brain"),
        (lambda: metrics.auroc(SCORE, TRUTH, EMPTY), "brain mask is empty"),
        (lambda: metrics.per_image_max_dice(2 * SCORE, TRUTH), r"thresholds lie in \[0, 1\]"),
        (lambda: metrics.evaluate(SCORE - 1, TRUTH), r"thresholds lie in \[0, 1\]"),
        (lambda: metrics.evaluate(SCORE, TRUTH, subjects=["a", "b"]), "one subject a slice"),
        (lambda: metrics.false_positive_volume(SCORE, TRUTH, ["a"], 0.5), "one subject a slice"),
        (lambda: metrics.bootstrap_interval("ap", SCORE, TRUTH, ["a", "b"]), "one subject a slice"),
        (lambda: metrics.bootstrap_interval("ap", SCORE, TRUTH, ["a"] * 3), "two subjects"),
        (lambda: metrics.bootstrap_interval(metrics.auroc, SCORE, TRUTH, ["a"] * 3), "two subjects"),
        (
            lambda: metrics.bootstrap_interval("f1", SCORE, TRUTH, [0, 1, 2]),
            "metric is one of pooled_max_dice",
        ),
        (
            lambda: metrics.bootstrap_interval("pooled_dice", SCORE, TRUTH, [0, 1, 2]),
            "pooled_dice needs a threshold",
        ),
        (lambda: metrics.bootstrap_interval("ap", SCORE, EMPTY, [0, 1, 2]), "no lesion voxel"),
        (
            lambda: metrics.bootstrap_interval("per_image_max_dice", 2 * SCORE, TRUTH, [0, 1, 2]),
            "thresholds lie",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- batch by batch
# ---------------------------------------------------------------------------------------------------


def smooth_maps(n=60, size=64, seed=0, contrast=0.3):
    """Maps as a detector gives them: most voxels near 0, lesions not well separated, some clipped at 1, 0
    outside.
    """
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    brain = np.broadcast_to((x / 0.36) ** 2 + (y / 0.44) ** 2 < 1, (n, size, size))
    centre, radius = rng.uniform(-0.2, 0.2, (2, n, 1, 1)), rng.uniform(0.03, 0.12, (n, 1, 1))
    truth = (
        ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2)
        & (np.arange(n) % 3 > 0)[:, None, None]
        & brain
    )
    noise = rng.gamma(0.5, 0.1, (n, size, size)) + contrast * truth * rng.random((n, 1, 1))
    return (
        (np.clip(ndimage.gaussian_filter(noise, (0, 1, 1)) * 2, 0, 1) * brain).astype(np.float32),
        truth,
        brain,
    )


def flat(values, name="") -> dict:
    """{"a": {"b": [1, 2]}} -> {"a.b.0": 1, "a.b.1": 2}"""
    if not isinstance(values, (dict, list)):
        return {name: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {k: v for key, value in items for k, v in flat(value, f"{name}.{key}").items()}


POOLED = ("pooled_max_dice", "ap", "auroc")


@pytest.mark.parametrize("contrast", [0.0, 0.1, 0.3, 3.0])
def test_a_stream_gives_what_evaluate_gives(contrast):
    score, truth, brain = smooth_maps(contrast=contrast)
    truth = truth.copy()
    truth[:20, 0, 0] = True  # outside the brain
    subjects = np.array([f"sub-{i // 6}" for i in np.random.default_rng(1).permutation(60)])
    truth[np.isin(subjects, ["sub-3", "sub-7"])] = False
    options = {"spacing": 2.0, "n": 60, "seed": 4}
    exact = metrics.evaluate(score, truth, brain=brain, subjects=subjects, threshold=0.2, **options)
    assert exact["false_positives"]["subjects"] == 3 and exact["by_size"]["medium"]["ap_interval"]
    results = []
    for size in (60, 7, 1):
        stream = Stream(threshold=0.2)
        for i in range(0, len(score), size):
            rows = slice(i, i + size)
            stream.add(score[rows][:, None], torch.from_numpy(truth[rows]), brain[rows], list(subjects[rows]))
        results.append(stream.result(**options))
    whole = flat(results[0])
    for other in results[1:]:  # the batch size does not matter
        assert whole == pytest.approx(flat(other), abs=1e-12)
    # the threshold is a place where the exact Dice is as good as the best, not always the same place
    assert metrics.dice_at(score, truth, whole.pop(".best_threshold"), brain)["pooled"] == pytest.approx(
        exact["pooled_max_dice"], abs=1e-4
    )
    expected = flat(exact)
    assert whole.keys() == expected.keys() - {".best_threshold"}
    for name, value in whole.items():
        pooled = any(f".{kind}" in name for kind in POOLED)
        of_interval = (
            2e-2 if "small" in name else 3e-3
        )  # the small lesions have 34 voxels: each of them shows
        error = of_interval if pooled and "interval" in name else 1e-4 if pooled else 1e-9
        assert value == pytest.approx(expected[name], abs=error), name


def test_a_stream_keeps_true_ties_and_extremes():
    score = np.array([0.0, 1e-30, 1e-9, 0.25, 0.25, 0.5, 1.0, 1.0], np.float32).reshape(1, 2, 4)
    truth = np.array([0, 0, 0, 1, 0, 0, 1, 0]).reshape(1, 2, 4)
    stream = Stream()
    stream.add(score, truth)
    result = stream.result()
    exact = metrics.evaluate(score, truth, intervals=False)
    for name in POOLED:
        assert result[name] == pytest.approx(exact[name], abs=1e-9)
    assert result["best_threshold"] == 0.25


def size_of_arrays(thing) -> int:
    """Bytes of all arrays that an object holds."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, (dict, list, tuple)):
        return sum(map(size_of_arrays, thing.values() if isinstance(thing, dict) else thing))
    return size_of_arrays(vars(thing)) if hasattr(thing, "__dict__") else 0


def test_what_a_stream_holds_does_not_grow_with_the_slices_of_a_subject():
    score, truth, brain = smooth_maps(n=12)
    subjects = np.repeat(["a", "b"], 6)
    stream = Stream(0.2)
    stream.add(score, truth, brain, subjects)
    held = size_of_arrays(stream)
    tracemalloc.start()
    for _ in range(100):
        stream.add(score, truth, brain, subjects)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_of_arrays(stream) == held < 30e6
    assert left < 1e5 and peak < 12e6  # 20 MB of scores have come
    result = stream.result(n=20)
    assert result["slices"] == 12 * 101 and result["subjects"] == 2
    for i in range(10):  # only subjects add to it, 50 kB for each size of lesion that they have
        stream.add(score[:6], truth[:6], brain[:6], [f"new-{i}"] * 6)
    assert size_of_arrays(stream) - held < 10 * 4 * 50e3


def test_a_stream_without_lesion_says_what_evaluate_says():
    stream = Stream(0.14)
    with pytest.raises(ValueError, match="no slices"):
        stream.result()
    stream.add(SCORE, EMPTY, subjects=["a", "a", "b"])
    result = stream.result(spacing=2.0)
    assert result == metrics.evaluate(SCORE, EMPTY, subjects=["a", "a", "b"], threshold=0.14, spacing=2.0)
    assert result["ap"] is None and result["false_positives"]["subjects"] == 2


def test_a_stream_refuses_bad_batches():
    stream = Stream()
    with pytest.raises(ValueError, match=r"thresholds lie in \[0, 1\]"):
        stream.add(2 * SCORE, TRUTH)
    with pytest.raises(ValueError, match="one subject a slice"):
        stream.add(SCORE, TRUTH, subjects=["a"])
    stream.add(SCORE, TRUTH, subjects=["a"] * 3)
    with pytest.raises(ValueError, match="every batch, or of none"):
        stream.add(SCORE, TRUTH)
