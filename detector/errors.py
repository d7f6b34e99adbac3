"""The errors that a user can cause, each with the exit code of the command line.

A message says who complains, what was expected, what was given and what to do, in one sentence. An exception that is
not a `DetectorError` is a defect of this package.
"""

from __future__ import annotations


class DetectorError(Exception):
    """Base of every error that a user can cause; exit code 1."""

    exit_code = 1


class ConfigError(DetectorError):
    """A configuration file, an override or a command line that cannot be understood; exit code 2."""

    exit_code = 2


class DatasetError(DetectorError):
    """A data set that cannot be used; exit code 3."""

    exit_code = 3


class DarknetError(DetectorError):
    """A Darknet .cfg file that cannot be read, honoured or written, or a .weights file; exit code 3."""

    exit_code = 3


class DarknetWeightsError(DarknetError):
    """A .weights file that cannot be read, does not fit or cannot be written; exit code 4, as of other model files."""

    exit_code = 4


class MediaError(DetectorError):
    """An image or video that cannot be read or written; exit code 3."""

    exit_code = 3


class StreamError(MediaError):
    """A camera or network stream that cannot be reached or was lost; exit code 1."""

    exit_code = 1


class CheckpointError(DetectorError):
    """A model file that cannot be read or does not fit; exit code 4."""

    exit_code = 4


class SaveError(CheckpointError):
    """A model file or save that the disk does not take; exit code 1."""

    exit_code = 1


class DivergenceError(DetectorError):
    """Training produced a non-finite loss or gradient; exit code 6."""

    exit_code = 6
