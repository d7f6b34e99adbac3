"""Text files of other programs, read whole and never more than a limit."""

from __future__ import annotations

from pathlib import Path

from detector.errors import DatasetError


def read_text(path: Path, what: str, max_bytes: int = 2**28) -> str:
    """Return the text of a file, UTF-8.

    Args:
        path: the file.
        what: the expected content, for messages.
        max_bytes: the largest size that is read.

    Raises:
        DatasetError: it cannot be read, is larger or no UTF-8.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a device would never end
            raise DatasetError(f"{path} cannot be read: expected {what}, got a pipe or a device; name a file")
        if (size := path.stat().st_size) > max_bytes:
            raise DatasetError(f"{path}: expected {what} of at most {max_bytes} bytes, got {size}; split it")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; expected {what}, check the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text at byte {error.start}; expected {what}") from error
    except ValueError as error:  # a null character in the name
        raise DatasetError(f"{str(path)!r} cannot be read: no file can have that name; correct it") from error
