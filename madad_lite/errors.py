"""What can be wrong with what a user gives. The message is one line that names the file or folder and says
what to do.
"""


class ScanError(ValueError):
    """A scan, or a folder of scans or slices, cannot be used."""


class RunError(ValueError):
    """A training run's folder cannot be used."""


class WeightsError(ValueError):
    """A model's folder cannot be used."""


class Refused(ValueError):
    """The arguments of a command make no sense together."""


class UnsafeFile(ValueError):
    """A pickled file that names something which nobody needs in order to hold weights."""
