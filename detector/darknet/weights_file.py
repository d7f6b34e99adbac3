"""Reader and writer of Darknet's .weights files: a header, then the float32 arrays of every layer, little-endian.

The arrays have no names. Their places follow from the .cfg alone (`weight_records`), so a file must fit its network
exactly.
References: github.com/AlexeyAB/darknet and github.com/hank-ai/darknet, behaviour as observed.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from detector.darknet.cfg_file import DarknetCfg
from detector.darknet.layer_shapes import infer_shapes
from detector.errors import DarknetWeightsError
from detector.io.files import write_whole

FloatArray = NDArray[np.float32]

_VALUE_BYTES = 4
_FLOAT32 = np.dtype("<f4")
# Released files have version 0.1.0, 0.2.0 or 0.2.5; above 1000, the matrices of [connected] are transposed.
_MAX_VERSION = 65_535
_UNLOADED_SCALES = ("scales", "rolling_mean", "rolling_variance")


@dataclass(frozen=True)
class WeightsHeader:
    """Header of a file: the format version and the number of images that the network was trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def _layout(self) -> struct.Struct:
        return struct.Struct("<iiiQ" if self.major * 10 + self.minor >= 2 else "<iiiI")

    @property
    def num_bytes(self) -> int:
        """Length of the header: 20 from version 0.2 on; 16 in older files, where `seen` has 32 bits."""
        return self._layout.size

    @property
    def transposed(self) -> bool:
        """True if the matrices of `[connected]` are stored as (inputs, outputs)."""
        return max(self.major, self.minor) > 1000

    def pack(self) -> bytes:
        """Return the bytes of the header.

        Raises:
            DarknetWeightsError: a number is too large for its field.
        """
        try:
            return self._layout.pack(self.major, self.minor, self.revision, self.seen)
        except struct.error as error:
            raise DarknetWeightsError(f"{self} does not fit a .weights header: {error}") from error

    @classmethod
    def unpack(cls, data: bytes, path: str | Path) -> WeightsHeader:
        """Read the header from the first 20 bytes of a file, or from all bytes of a shorter one.

        Raises:
            DarknetWeightsError: `data` does not start with a header.
        """
        if len(data) < 12:
            raise DarknetWeightsError(f"{path} has {len(data)} bytes; expected a header of 16 or 20")
        version = struct.unpack_from("<iii", data)
        header = cls(*version)
        if not all(0 <= number <= _MAX_VERSION for number in version):
            raise DarknetWeightsError(
                f"{path} is not a .weights file: its header has version {'.'.join(map(str, version))}"
            )
        if len(data) < header.num_bytes:
            raise DarknetWeightsError(
                f"{path} has {len(data)} bytes; expected a header of {header.num_bytes} for version "
                f"{'.'.join(map(str, version))}"
            )
        return cls(*header._layout.unpack_from(data))


@dataclass(frozen=True)
class WeightRecord:
    """Array of a file.

    Attributes:
        layer: index of the layer that owns it.
        section: that layer's section name.
        line: the section's line in the .cfg.
        name: biases, scales, rolling_mean, rolling_variance or weights.
        shape: kernels are (filters, channels / groups, size, size), matrices (outputs, inputs).
        offset: float32 values between the header and the array.
    """

    layer: int
    section: str
    line: int
    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_values(self) -> int:
        """float32 values in the array."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """float32 values between the header and the end of the array."""
        return self.offset + self.num_values

    def __str__(self) -> str:
        return f"layer {self.layer} ([{self.section}] of line {self.line}) {self.name}"


@dataclass(frozen=True)
class DarknetWeights:
    """Content of a file.

    Attributes:
        header: the header.
        arrays: (layer, name) -> float32 values mapped from the file, read-only.
        num_layers_read: number of first layers whose arrays are all in the file; all layers for a complete file.
        missing: the arrays of the network that are not in the file, in the order of the layers.
    """

    header: WeightsHeader
    arrays: Mapping[tuple[int, str], FloatArray]
    num_layers_read: int
    missing: tuple[WeightRecord, ...]


def _records(cfg: DarknetCfg, as_read: bool) -> tuple[WeightRecord, ...]:
    records, offset = [], 0
    for index, (section, shape) in enumerate(zip(cfg.layers, infer_shapes(cfg), strict=True)):
        for name, array_shape in shape.arrays.items():
            if as_read and (section.dontload or (section.dontloadscales and name in _UNLOADED_SCALES)):
                continue
            records.append(WeightRecord(index, section.name, section.line, name, array_shape, offset))
            offset = records[-1].end
    return tuple(records)


def weight_records(cfg: DarknetCfg) -> tuple[WeightRecord, ...]:
    """Return the arrays that are read from a file of this network, in the order of the file.

    Layers with `dontload`, and the normalisation of layers with `dontloadscales`, are left out as if the file did not
    hold them, as in Darknet.

    Raises:
        DarknetError: the layers of the network do not fit together.
    """
    return _records(cfg, as_read=True)


def num_weight_bytes(cfg: DarknetCfg, num_layers: int | None = None, header: WeightsHeader | None = None) -> int:
    """Return the exact length of a file of this network, or of its first `num_layers` layers (`name.conv.num_layers`).

    Raises:
        DarknetError: the layers of the network do not fit together.
    """
    num_values = sum(r.num_values for r in weight_records(cfg) if num_layers is None or r.layer < num_layers)
    return (header or WeightsHeader()).num_bytes + num_values * _VALUE_BYTES


# --- reading -----------------------------------------------------------------------------------------------------


def _opened(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file and its length; refuse a folder, and a pipe instead of waiting for it."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DarknetWeightsError(f"{path} is not a regular file; expected a .weights file")
        with open(path, "rb") as file:
            return file.read(20), status.st_size
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DarknetWeightsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _where_it_ends(records: tuple[WeightRecord, ...], num_body_bytes: int) -> tuple[int, str]:
    """Return how many records a body of that length holds completely, and a description of where it ends.

    The count is -1 if the end cuts a layer.
    """
    num_whole = sum(record.end * _VALUE_BYTES <= num_body_bytes for record in records)
    if not num_whole and (not records or num_body_bytes == 0):
        return 0, "it ends with the header"
    before = records[num_whole - 1] if num_whole else None
    if num_whole == len(records):
        return num_whole, f"its last array is {before}"
    cut = records[num_whole]
    rest = num_body_bytes - cut.offset * _VALUE_BYTES
    if rest == 0 and before is not None and before.layer != cut.layer:
        return num_whole, f"it ends after layer {before.layer} ([{before.section}] of line {before.line})"
    return -1, f"it ends in {cut}, after {rest} of {cut.num_values * _VALUE_BYTES} bytes"


def read_weights(path: str | Path, cfg: DarknetCfg, *, partial: bool = False) -> DarknetWeights:
    """Read a .weights file of a network.

    Args:
        path: the file. It is mapped, not copied, so arrays that are not used take no memory.
        cfg: the network.
        partial: also accept a file that ends between two layers, such as `yolov4.conv.137`.

    Raises:
        DarknetWeightsError: the file cannot be read, has another length than the network needs (the message has both
            lengths and the place of its end), or holds a value that is not finite or a negative variance.
    """
    path = Path(path)
    records = weight_records(cfg)
    start, num_bytes = _opened(path)
    header = WeightsHeader.unpack(start, path)
    expected = header.num_bytes + (records[-1].end if records else 0) * _VALUE_BYTES
    num_whole, ending = _where_it_ends(records, num_bytes - header.num_bytes)
    if num_bytes != expected:
        over = num_bytes - expected
        difference = f"{abs(over)} byte{'s' if abs(over) > 1 else ''} too {'short' if over < 0 else 'long'}"
        mismatch = f"{path}: expected {expected} bytes for {cfg.path}, got {num_bytes}, {difference}: {ending}"
        if over > 0 or num_whole < 0:
            raise DarknetWeightsError(f"{mismatch}; it is damaged or belongs to another network")
        if num_whole == 0:
            raise DarknetWeightsError(f"{mismatch}; it holds no layer")
        if not partial:
            raise DarknetWeightsError(f"{mismatch}; use partial=True if it is meant to be a partial file")
    values = _mapped(path, header, records[num_whole - 1].end if num_whole else 0)
    arrays = {}
    for record in records[:num_whole]:
        array = values[record.offset : record.end]
        _check_values(array, f"{path}: {record}", record.name)
        if header.transposed and record.section == "connected" and record.name == "weights":
            arrays[record.layer, record.name] = array.reshape(record.shape[::-1]).T
        else:
            arrays[record.layer, record.name] = array.reshape(record.shape)
    num_layers_read = len(cfg.layers) if num_whole == len(records) else records[num_whole - 1].layer + 1
    missing = tuple(r for r in _records(cfg, as_read=False) if (r.layer, r.name) not in arrays)
    return DarknetWeights(header, arrays, num_layers_read, missing)


def _mapped(path: Path, header: WeightsHeader, num_values: int) -> FloatArray:
    if num_values == 0:  # an empty array cannot be mapped
        return np.zeros(0, _FLOAT32)
    try:
        return np.memmap(path, _FLOAT32, "r", header.num_bytes, (num_values,))
    except (OSError, ValueError) as error:
        raise DarknetWeightsError(f"{path} cannot be mapped to memory: {error}") from error


def _check_values(array: FloatArray, place: str, name: str) -> None:
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise DarknetWeightsError(
            f"{place} holds {num_bad} values that are not finite; training diverged, or the file is damaged"
        )
    if name == "rolling_variance" and array.size and float(array.min()) < 0:
        raise DarknetWeightsError(f"{place} holds negative variances; the file belongs to another network")


# --- writing -----------------------------------------------------------------------------------------------------


def write_weights(
    path: str | Path,
    cfg: DarknetCfg,
    arrays: Mapping[tuple[int, str], FloatArray],
    *,
    header: WeightsHeader | None = None,
    num_layers: int | None = None,
) -> None:
    """Write a .weights file, under a temporary name first, so that the final name is always a complete file.

    Args:
        path: the file; an old one is replaced.
        cfg: the network.
        arrays: (layer, name) -> float32 values, exactly the arrays of `weight_records`.
        header: by default version 0.2.5 with seen = 0.
        num_layers: write only so many first layers, a partial file.

    Raises:
        DarknetWeightsError: arrays do not fit the network or are not finite, Darknet would not read the arrays as they
            were written (`dontload`), or the file cannot be written.
    """
    path, header = Path(path), header or WeightsHeader()
    for section in cfg.layers:
        if section.dontload or section.dontloadscales:
            name = "dontload" if section.dontload else "dontloadscales"
            raise DarknetWeightsError(
                f"{cfg.place(section)} {name}=1 makes Darknet skip arrays when it reads but not when it writes; remove "
                "the key before writing weights"
            )
    records = [r for r in weight_records(cfg) if num_layers is None or r.layer < num_layers]
    extra = sorted(set(arrays) - {(r.layer, r.name) for r in records})
    if extra:
        raise DarknetWeightsError(
            f"{path}: the array {extra[0]} does not belong to a .weights file of {cfg.path}; remove it"
        )
    ordered = []
    for record in records:
        array = arrays.get((record.layer, record.name))
        if array is None:
            raise DarknetWeightsError(f"{path}: {record} is missing")
        if array.shape != record.shape or array.dtype != np.float32:
            raise DarknetWeightsError(
                f"{path}: {record}: expected float32 of shape {record.shape}, got {array.dtype} of {array.shape}"
            )
        _check_values(array, f"{path}: {record}", record.name)
        is_transposed = header.transposed and record.section == "connected" and record.name == "weights"
        ordered.append(array.T if is_transposed else array)
    _write(path, header.pack(), ordered)


def _write(path: Path, start: bytes, arrays: Iterable[FloatArray]) -> None:
    def write(file: BinaryIO) -> None:
        file.write(start)
        for array in arrays:
            file.write(np.ascontiguousarray(array, _FLOAT32).data)

    try:
        write_whole(path, write)
    except OSError as error:
        raise DarknetWeightsError(
            f"{path} cannot be written ({error.strerror}); an old file is unchanged; check the disk"
        ) from error
