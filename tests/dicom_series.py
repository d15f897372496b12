"""Small DICOM series, written as scanners do: a file a slice."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(
    folder: Path,
    slices: np.ndarray,
    *,
    number: int = 1,
    description: str = "t1_mprage",
    spacing: tuple[float, float] = (2.0, 2.0),
    left_out: tuple[int, ...] = (),
    names: list[int] | None = None,
    rle: bool = False,
    study: str = "one",
    first: int = 1,
    centre: tuple[float, float, float] = (0, 0, 0),
    **tags,
) -> Path:
    """slices: (n, rows, columns) int, from the feet up; rows from front to back, columns from the patient's right
    to left, as DICOM has axial slices.  spacing: mm in plane and between slices.  left_out: these slices are not
    written.  names: the files' numbers, in the order of the slices.  rle: compressed.  first: the
    first slice's instance number.  centre: of the volume, mm to the right, front and top.  tags: others, by keyword.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n, rows, columns = slices.shape
    names = names or list(range(n))
    series, frame = (generate_uid(entropy_srcs=[study, str(number), w]) for w in ("series", "frame"))
    for k, pixels in enumerate(slices):
        if k in left_out:
            continue
        d = FileDataset(None, Dataset(), preamble=b"\0" * 128)
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = MRImageStorage
        uid = generate_uid(entropy_srcs=[study, str(number), str(k + first)])
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = uid
        d.StudyInstanceUID, d.SeriesInstanceUID = generate_uid(entropy_srcs=[study]), series
        d.FrameOfReferenceUID = frame
        d.Modality, d.Manufacturer, d.PatientID, d.PatientName = "MR", "SIEMENS", "P1", "Nobody"
        d.StudyDate = d.SeriesDate = d.AcquisitionDate = "20200101"
        d.StudyTime = d.SeriesTime = d.AcquisitionTime = "120000"
        d.PatientPosition = "HFS"
        d.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        d.SeriesNumber, d.InstanceNumber, d.AcquisitionNumber = number, k + first, 1
        d.SeriesDescription = d.ProtocolName = description
        d.ScanningSequence, d.MRAcquisitionType, d.EchoTime, d.RepetitionTime = "GR", "3D", 3.0, 2000.0
        d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        half = [(side - 1) / 2 * spacing[0] for side in (columns, rows)]
        d.ImagePositionPatient = [
            -centre[0] - half[0],
            -centre[1] - half[1],
            centre[2] + (k - (n - 1) / 2) * spacing[1],
        ]
        d.PixelSpacing, d.SliceThickness = [spacing[0]] * 2, spacing[1]
        d.SpacingBetweenSlices = spacing[1]
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = pixels.astype("<u2").tobytes()
        d["PixelData"].VR = "OW"
        for name, value in tags.items():
            setattr(d, name, value)
        if rle:
            from pydicom.uid import RLELossless

            d.compress(RLELossless)
        d.save_as(folder / f"IM{number:02d}{names[k]:04d}", enforce_file_format=True)
    return folder
