"""Darknet's .weights files: a header, then the float32 arrays of every layer, little-endian, without names.

What stands where follows from the .cfg alone (`weight_records`), so a file fits a network exactly or not at all.
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
from detector.errors import DarknetError
from detector.io.files import write_whole

FloatArray = NDArray[np.float32]

_VALUE_BYTES = 4
_FLOAT32 = np.dtype("<f4")
# Released files say 0.1.0, 0.2.0 or 0.2.5; over 1000 the matrices of [connected] are transposed. More is no version.
_MAX_VERSION = 65_535
_UNLOADED_SCALES = ("scales", "rolling_mean", "rolling_variance")


@dataclass(frozen=True)
class WeightsHeader:
    """The start of a file: its format version and the number of images the network was trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def _layout(self) -> struct.Struct:
        return struct.Struct("<iiiQ" if self.major * 10 + self.minor >= 2 else "<iiiI")

    @property
    def num_bytes(self) -> int:
        """20 from version 0.2 on, 16 before: there `seen` has 32 bits."""
        return self._layout.size

    @property
    def transposed(self) -> bool:
        """Whether the matrices of `[connected]` are stored as (inputs, outputs)."""
        return max(self.major, self.minor) > 1000

    def pack(self) -> bytes:
        """The header as it stands in a file.

        Raises:
            DarknetError: a number that its field cannot hold.
        """
        try:
            return self._layout.pack(self.major, self.minor, self.revision, self.seen)
        except struct.error as error:
            raise DarknetError(f"{self} does not fit a .weights header: {error}") from error

    @classmethod
    def unpack(cls, data: bytes, path: str | Path) -> WeightsHeader:
        """The header at the start of a file of which `data` is the beginning, 20 bytes if it has as many.

        Raises:
            DarknetError: `data` is no such header.
        """
        if len(data) < 12:
            raise DarknetError(f"{path} has {len(data)} bytes; a .weights file starts with a header of 16 or 20")
        version = struct.unpack_from("<iii", data)
        header = cls(*version)
        if not all(0 <= number <= _MAX_VERSION for number in version):
            raise DarknetError(f"{path} is no .weights file: its header says version {'.'.join(map(str, version))}")
        if len(data) < header.num_bytes:
            raise DarknetError(
                f"{path} has {len(data)} bytes; its header of version {'.'.join(map(str, version))} alone has "
                f"{header.num_bytes}"
            )
        return cls(*header._layout.unpack_from(data))


@dataclass(frozen=True)
class WeightRecord:
    """One array of a file.

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
    """What a file holds.

    Attributes:
        header: the start of the file.
        arrays: (layer, name) -> float32 values mapped from the file, not to be written to.
        num_layers_read: layers 0 to here - 1 have all that the file gives them; of a whole file, all layers.
        missing: the arrays of the network that were not in the file, in its order.
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
    """The arrays that a file of this network is read as, in the order of the file.

    Layers with `dontload`, and the normalisation of those with `dontloadscales`, are passed over as if the file did not
    hold them: that is what Darknet does.

    Raises:
        DarknetError: the layers of the network do not fit together.
    """
    return _records(cfg, as_read=True)


def num_weight_bytes(cfg: DarknetCfg, num_layers: int | None = None, header: WeightsHeader | None = None) -> int:
    """The exact length of a file of this network, or of its first `num_layers` layers (`name.conv.num_layers`).

    Raises:
        DarknetError: the layers of the network do not fit together.
    """
    num_values = sum(r.num_values for r in weight_records(cfg) if num_layers is None or r.layer < num_layers)
    return (header or WeightsHeader()).num_bytes + num_values * _VALUE_BYTES


# --- reading -----------------------------------------------------------------------------------------------------


def _opened(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file and its length; a pipe or a folder is refused, not waited for."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DarknetError(f"{path} is no file")
        with open(path, "rb") as file:
            return file.read(20), status.st_size
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DarknetError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _where_it_ends(records: tuple[WeightRecord, ...], num_body_bytes: int) -> tuple[int, str]:
    """How many records a body of that length holds whole, and the place of its end in words.

    The count is -1 where the end cuts a layer.
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
    """Reads a .weights file of a network.

    Args:
        path: the file. It is mapped, not copied: what is not looked at costs no memory.
        cfg: the network.
        partial: a file that ends between two layers, as `yolov4.conv.137`, is accepted too.

    Raises:
        DarknetError: the file cannot be read, is shorter or longer than the network's (with byte counts and the place
            of its end), or holds values that no trained network has: not finite, or a negative variance.
    """
    path = Path(path)
    records = weight_records(cfg)
    start, num_bytes = _opened(path)
    header = WeightsHeader.unpack(start, path)
    wanted = header.num_bytes + (records[-1].end if records else 0) * _VALUE_BYTES
    num_whole, ending = _where_it_ends(records, num_bytes - header.num_bytes)
    if num_bytes != wanted:
        over = num_bytes - wanted
        difference = f"{abs(over)} byte{'s' if abs(over) > 1 else ''} too {'short' if over < 0 else 'long'}"
        found = f"{path} has {num_bytes} bytes where {cfg.path} wants {wanted}, {difference}: {ending}"
        if over > 0 or num_whole < 0:
            raise DarknetError(f"{found}; it is damaged or belongs to another network")
        if num_whole == 0:
            raise DarknetError(f"{found}; it holds no layer")
        if not partial:
            raise DarknetError(f"{found}; if it is a partial file by intent, ask for partial reading")
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
    if num_values == 0:  # nothing can be mapped
        return np.zeros(0, _FLOAT32)
    try:
        return np.memmap(path, _FLOAT32, "r", header.num_bytes, (num_values,))
    except (OSError, ValueError) as error:
        raise DarknetError(f"{path} cannot be mapped to memory: {error}") from error


def _check_values(array: FloatArray, place: str, name: str) -> None:
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise DarknetError(f"{place} holds {num_bad} values that are not finite; training diverged, or it is damaged")
    if name == "rolling_variance" and array.size and float(array.min()) < 0:
        raise DarknetError(f"{place} holds negative variances; the file belongs to another network")


# --- writing -----------------------------------------------------------------------------------------------------


def write_weights(
    path: str | Path,
    cfg: DarknetCfg,
    arrays: Mapping[tuple[int, str], FloatArray],
    *,
    header: WeightsHeader | None = None,
    num_layers: int | None = None,
) -> None:
    """Writes a .weights file: under a temporary name first, so that the name always stands for a whole file.

    Args:
        path: the file; an old one is replaced.
        cfg: the network.
        arrays: (layer, name) -> float32 values, exactly the arrays of `weight_records`.
        header: version 0.2.5, seen = 0, unless given.
        num_layers: write layers 0 to here - 1 only, a partial file.

    Raises:
        DarknetError: arrays that do not fit the network or are not finite, a network that Darknet would read
            differently than it was written (`dontload`), or a file that cannot be written.
    """
    path, header = Path(path), header or WeightsHeader()
    for section in cfg.layers:
        if section.dontload or section.dontloadscales:
            name = "dontload" if section.dontload else "dontloadscales"
            raise DarknetError(
                f"{cfg.place(section)} {name}=1 makes Darknet skip arrays when it reads but not when it writes; remove "
                "the key before writing weights"
            )
    records = [r for r in weight_records(cfg) if num_layers is None or r.layer < num_layers]
    extra = sorted(set(arrays) - {(r.layer, r.name) for r in records})
    if extra:
        raise DarknetError(f"{path}: there is no place for the array {extra[0]} in a .weights file of {cfg.path}")
    ordered = []
    for record in records:
        array = arrays.get((record.layer, record.name))
        if array is None:
            raise DarknetError(f"{path}: {record} is missing")
        if array.shape != record.shape or array.dtype != np.float32:
            raise DarknetError(
                f"{path}: {record} wants float32 of shape {record.shape}, found {array.dtype} of {array.shape}"
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
        raise DarknetError(f"{path} is not written ({error.strerror}), an old one is whole: check the disk") from error
