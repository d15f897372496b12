"""A torch dataset of prepared slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from madad_lite.errors import ScanError
from madad_lite.slices.manifest import ARRAYS, HEADER, Manifest


class SliceDataset:
    """Slices of one split, of one or more prepared folders, for torch's DataLoader (a map-style dataset).

    item: {"image": (1, H, W) float32 in [-1, 1], "brain": (1, H, W) bool, "lesion": (1, H, W) bool (all
           False without mask), "scan": position in .scan_ids and .subjects, "index": which of the scan's
           slices}

    data: prepared folder(s) or Manifest(s), all on one grid and normalised alike.  lesion_free: only slices
    without lesion pixels; by default for "train". The files' sizes and headers are looked at when it is made;
    later nothing but the slice that is asked for is read, and no file stays open: it can be pickled and sent to
    workers. Raises ScanError for an empty split, a folder that is given twice and damaged arrays
    (`Manifest.verify` looks at every byte).
    """

    def __init__(self, data, split: str = "train", lesion_free: bool | None = None):
        several = isinstance(data, Sequence) and not isinstance(data, str)
        manifests = [
            m if isinstance(m, Manifest) else Manifest.load(m) for m in (data if several else [data])
        ]
        if any(m.grid != manifests[0].grid for m in manifests):
            raise ScanError(
                f"{', '.join(str(m.folder) for m in manifests)}: on different grids; use one for all"
            )
        if len(ways := sorted({m.normalise for m in manifests})) > 1:
            names = ", ".join(str(m.folder) for m in manifests)
            raise ScanError(f"{names}: prepared with --normalise {' and '.join(ways)}; use one for all")
        folders = [m.folder.resolve() for m in manifests]
        if twice := [f for f in folders if folders.count(f) > 1]:
            raise ScanError(f"{twice[0]}: given twice, so that its slices would count double; give it once")
        for m in manifests:
            m.verify(split, checksums=False)
        self.split = split
        self.lesion_free = split == "train" if lesion_free is None else lesion_free
        found = [(m, s) for m in manifests for s in m.scans(split)]
        self.scan_ids: list[str] = [s["scan_id"] for _, s in found]
        self.subjects: list[str] = [s["subject"] for _, s in found]
        self.has_lesion_mask: list[bool] = [s["lesion"] for _, s in found]
        self._folders = [m.scan_folder(s).resolve() for m, s in found]
        self._n_slices = [s["n_slices"] for _, s in found]
        self._size = manifests[0].grid.size
        self._slices: list[tuple[int, int]] = [
            (number, k)
            for number, (_, s) in enumerate(found)
            for k in range(self._n_slices[number])
            if not (self.lesion_free and s["lesion"] and s["lesion_pixels"][k])
        ]
        if not self._slices:
            raise ScanError(
                f"{', '.join(str(m.folder) for m in manifests)}: no slices in the split {split!r}; "
                "prepare more scans, or other fractions"
            )

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, i: int) -> dict:
        import torch

        number, k = self._slices[i]
        brain = torch.from_numpy(self._read(number, "brain", k))
        lesion = self._read(number, "lesion", k) if self.has_lesion_mask[number] else None
        return {
            "image": torch.from_numpy(self._read(number, "image", k).astype(np.float32)),
            "brain": brain,
            "lesion": torch.zeros_like(brain) if lesion is None else torch.from_numpy(lesion),
            "scan": number,
            "index": k,
        }

    def _read(self, number: int, name: str, k: int) -> np.ndarray:
        """Slice k of an array, (1, H, W). Headers were checked when the dataset was made, so that a slice's place
        in the file is known: that is several times as fast as np.load with a memory map."""
        path, dtype, pixels = self._folders[number] / f"{name}.npy", ARRAYS[name], self._size**2
        try:
            values = np.fromfile(path, dtype, pixels, offset=HEADER + k * pixels * dtype.itemsize)
        except OSError as error:
            raise ScanError(f"{path}: can no longer be read ({error.strerror}); prepare again") from None
        if len(values) < pixels:
            raise ScanError(f"{path}: has become shorter since it was opened; run `madad prepare` again")
        return values.reshape(1, self._size, self._size)
