"""The demo, as small as it can be, and what its page says."""

import json
import re

import numpy as np
import pytest

from madad_lite.cli import main
from madad_lite.demo.page import verdict, write_page
from madad_lite.demo.run import SHOWN, run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Few subjects, slices far apart, two steps of each training."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(out, normal=3, patients=2, spacing=4.0, z_spacing=16.0, autoencoder_steps=2, denoiser_steps=2)
    return out


def test_the_page_shows_the_shipped_weights_first_and_the_brief_training_last(demo):
    text = (demo / "index.html").read_text()
    people = [
        text.index(f"<h3>{name}") for name in ("A plain stroke of", "A small stroke of", "A healthy subject")
    ]
    headings = [text.index(f"<h2>{name}") for name in ("How well", "How far minutes", "Files")]
    assert sorted(people + headings) == people + headings
    assert text.index("after this brief training") > headings[1]
    assert "Dice is twice the overlap" in text and "width=device-width" in text
    assert not re.search(r"\bslice \d", text) and len(re.findall(r"z = [+-]\d+ mm", text)) >= 6


def test_every_picture_and_file_of_the_page_is_there(demo):
    named = re.findall(r'(?:src|href)="([^"]+)"', (demo / "index.html").read_text())
    assert len(named) > 20 and all((demo / name).stat().st_size > 0 for name in named)


def test_its_subjects_are_what_the_page_calls_them(demo):
    import nibabel as nib

    ml = {}
    for name in SHOWN:
        lesion = nib.load(demo / "shown" / f"{name}_lesion.nii.gz")
        ml[name] = np.asarray(lesion.dataobj).sum() * 0.064
    assert 10 < ml["plain"] < 60 and 0 < ml["small"] < 5 and ml["healthy"] == 0


def test_the_numbers_of_both_are_kept(demo):
    results = json.loads((demo / "metrics.json").read_text())
    assert set(results) == {"shipped", "brief"} and all("MAD-AD" in r["methods"] for r in results.values())


def test_the_page_can_be_made_again_from_the_folder(demo):
    before = (demo / "index.html").read_text()
    (demo / "index.html").unlink()
    assert write_page(demo).read_text() == before


@pytest.mark.parametrize(
    ("above", "hit", "lesion", "said"),
    [
        (26.0, 24.5, 30.0, "Found: 24.5 of 30.0 mL of the lesion, and 1.5 mL outside it, because"),
        (5.0, 5.0, 30.0, "Found in part: 5.0 of 30.0 mL of the lesion, and 0.0 mL outside it, because"),
        (0.0, 0.0, 2.0, "Missed: 0 of 2.0 mL found; the map reaches only 0.31"),
        (0.5, 0.0, 2.0, "Missed: 0 of 2.0 mL found; 0.5 mL elsewhere are a false alarm; the map"),
        (0.0, 0.0, 0.0, "Rightly nothing found: 0 mL above the threshold"),
        (1.2, 0.0, 0.0, "False alarm: 1.2 mL above the threshold where there is no lesion"),
    ],
)
def test_the_sentence_says_found_or_missed_how_much_and_why(above, hit, lesion, said):
    sentence = verdict(above, hit, lesion, 0.31)
    assert sentence.startswith(said) and "because" in sentence and sentence.endswith(".")


def test_other_peoples_files_are_not_replaced(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert (
        "choose another folder" in capsys.readouterr().err and (tmp_path / "thesis.txt").read_text() == "mine"
    )
