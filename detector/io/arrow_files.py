"""Parquet files of results, written whole and read with pyarrow; the only file that imports pyarrow."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from detector.errors import ConfigError, DetectorError
from detector.io.files import write_whole

if TYPE_CHECKING:
    import pyarrow as pa

EXTRA = "pip install 'detector-toolkit[arrow]'"
Row = Mapping[str, object]


def require_arrow(who: str) -> None:
    """Reject the use of Parquet files without pyarrow.

    Raises:
        ConfigError: pyarrow cannot be imported; `who` names the option or key that needs it.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"{who}: pyarrow cannot be imported ({error}); install it with: {EXTRA}") from error


def detection_schema() -> pa.Schema:
    """Return the schema of predictions: one row for each image, its detections as a list of structures."""
    import pyarrow as pa

    sides = [(name, pa.float32()) for name in ("x1", "y1", "x2", "y2")]
    detection = pa.struct(
        [("label", pa.int32()), ("category_id", pa.int64()), ("name", pa.string()), ("score", pa.float32()), *sides]
    )
    return pa.schema(
        [
            ("index", pa.int64()),
            ("image", pa.string()),
            ("image_id", pa.int64()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("error", pa.string()),
            ("warnings", pa.list_(pa.string())),
            ("detections", pa.list_(detection)),
        ]
    )


def write_parquet(path: Path, rows: Iterable[Sequence[Row]], schema: pa.Schema, metadata: Mapping[str, str]) -> None:
    """Write a Parquet file, whole or not at all; each sequence of rows becomes a row group.

    Raises:
        DetectorError: the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = schema.with_metadata({key.encode(): value.encode() for key, value in metadata.items()})

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, own) as writer:
            for group in rows:
                writer.write_table(pa.Table.from_pylist(list(group), own))

    _write(path, write)


def _write(path: Path, write: Any) -> None:
    try:
        write_whole(path, write)
    except OSError as error:
        raise DetectorError(f"{path} cannot be written: {error.strerror or error}; check the disk") from error


def parquet_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a Parquet file from its end; None if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return None
    plain = {key.decode(): value.decode() for key, value in (found.metadata or {}).items() if key != b"ARROW:schema"}
    return {**plain, "num_rows": str(found.num_rows)}


def read_parquet(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a Parquet file, one row group at a time.

    Raises:
        DetectorError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DetectorError(f"{path} cannot be read: {error}; write it again") from error
