"""Small simulated scans that several test files share, made once a test process."""

import pytest
import torch

from madad_lite.scans.grid import Grid
from madad_lite.simulation.cohort import write_cohort
from madad_lite.slices.folder import prepare_folder

torch.set_num_threads(1)

# Files that train, start processes or break them off: `make test-quick` leaves them out. Single tests elsewhere carry
# the mark themselves.
SLOW_FILES = {
    "test_hostile",
    "test_interruption",
    "test_learning",
    "test_many_scans",
    "test_onnx_export",
    "test_processes",
    "test_reproduce",
    "test_site",
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """3 normal subjects and 3 patients, T1, 4 mm."""
    folder = tmp_path_factory.mktemp("data") / "cohort"
    return write_cohort(folder, normal=3, patients=3, spacing=4.0, seed=1, progress=False)


@pytest.fixture(scope="session")
def prepared_cohort(cohort, tmp_path_factory):
    """The cohort as slices of 48 x 48 pixels."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare_folder(cohort, out, grid=Grid(spacing=4.0, size=48), workers=1, progress=False)
    return out


@pytest.fixture(scope="session")
def patient_scan(tmp_path_factory):
    """Files of one patient with a stroke of 40 mL at 2 mm, the shipped weights' resolution."""
    from madad_lite.scans.nifti import save_nifti
    from madad_lite.simulation.cohort import simulate_subject

    folder = tmp_path_factory.mktemp("scan")
    subject = simulate_subject(5, lesion="stroke", volume_ml=40.0)
    files = {"image": subject.images["t1"], "brain": subject.brain, "lesion": subject.lesion}
    for name, image in files.items():
        save_nifti(image, folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in files}
