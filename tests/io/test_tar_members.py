from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.errors import DatasetError, MediaError
from detector.io.tar_members import file_holding, list_members, member_of, read_member


def write(
    path: Path, *names: str, change: Callable[[tarfile.TarInfo], None] = lambda info: None, format: int = 0
) -> Path:
    """Write an archive of members whose content is their name."""
    with tarfile.open(path, "w", format=format or tarfile.USTAR_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            change(info)
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_listed_and_read_where_they_lie(format: int, tmp_path: Path) -> None:
    names = ["a.jpg", "folder/b.jpg", "ü.png"] + ([] if format == tarfile.USTAR_FORMAT else ["x" * 300, "é" * 120])
    archive = write(tmp_path / "s.tar", *names, format=format)
    members = list(list_members(archive))
    assert [member.name for member in members] == names
    assert [read_member(member).decode() for member in members] == names
    assert [member_of(member.path) for member in members] == members
    assert {file_holding(member.path) for member in members} == {archive}
    with tarfile.open(archive) as opened:
        assert [info.offset_data for info in opened] == [member.start for member in members]


def test_other_paths_are_no_members() -> None:
    for path in ("a.jpg", "s.tar", "s.tar/a.jpg", "s.tar/12/a.jpg", "s.tar/1+2", "s/1+2/a.jpg"):
        assert member_of(Path(path)) is None
        assert file_holding(Path(path)) == Path(path)


def linked(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def hard_linked(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.LNKTYPE, "a", 0


def device(info: tarfile.TarInfo) -> None:
    info.type, info.size = tarfile.CHRTYPE, 0


def test_colon_in_a_name_is_no_drive(tmp_path: Path) -> None:
    (member,) = list_members(write(tmp_path / "s.tar", "12:30:00.jpg"))
    assert read_member(member) == b"12:30:00.jpg"


def test_members_after_the_end_are_reported(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.tar", "a").read_bytes(), write(tmp_path / "b.tar", "b").read_bytes()
    hole = bytearray(write(tmp_path / "c.tar", "a", "b", "c").read_bytes())
    hole[2 * 512 : 3 * 512] = bytes(512)  # the header of the second member
    for content in (first + second, bytes(hole)):
        (tmp_path / "s.tar").write_bytes(content)
        listed = list_members(tmp_path / "s.tar")
        assert next(listed).name == "a"
        with pytest.raises(DatasetError, match="goes on after its end, at byte 1024"):
            next(listed)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a", linked, "'a' in it is a link, a device or a sparse file"),
        ("a", hard_linked, "is a link"),
        ("a", device, "is a link"),
        ("/etc/a", lambda info: None, "leads out of its folder"),
        ("../a", lambda info: None, "leads out"),
        ("b/../../a", lambda info: None, "leads out"),
        ("..\\a", lambda info: None, "leads out"),
        ("C:\\a", lambda info: None, "leads out"),
    ],
)
def test_odd_member_is_rejected(
    name: str, change: Callable[[tarfile.TarInfo], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=message):
        list(list_members(write(tmp_path / "s.tar", name, change=change)))


def test_cut_archive_is_rejected_after_its_whole_members(tmp_path: Path) -> None:
    archive = write(tmp_path / "s.tar", "a", "b", "c")
    content = archive.read_bytes()
    for num_bytes, num_whole, message in (
        (512 * 4 + 100, 2, "cut or damaged, at byte 2048: a header is damaged"),
        (512 * 4, 2, "cut or damaged, at byte 2048: it has no end"),  # between two members
        (512 * 5, 2, "'c' ends at byte 2561 of 2560"),
        (512 * 6, 3, "it has no end"),
    ):
        archive.write_bytes(content[:num_bytes])
        members = list_members(archive)
        assert [next(members).name for _ in range(num_whole)] == ["a", "b", "c"][:num_whole]
        with pytest.raises(DatasetError, match=message):
            next(members)


def test_damaged_header_in_the_middle_is_reported(tmp_path: Path) -> None:
    archive = write(tmp_path / "s.tar", "a", "b", "c")
    content = bytearray(archive.read_bytes())
    content[1024 + 3] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match="at byte 1024: a header is damaged"):
        list(list_members(archive))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has no end|is no tar archive"),
        (b"no archive" * 100, "is no tar archive"),
        (b"\x1f\x8b" + bytes(600), "is compressed; unpack it to a plain .tar"),
        (b"BZh9" + bytes(600), "is compressed"),
    ],
)
def test_other_files_are_rejected(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        list(list_members(tmp_path / "s.tar"))


def test_archive_bombs_take_no_memory(tmp_path: Path) -> None:
    """A header that claims a size, in a file that really has it as a hole."""
    for kind, message in ((tarfile.XHDTYPE, "a header of"), (tarfile.GNUTYPE_LONGNAME, "a header of")):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 2**34 - 1
        archive = tmp_path / "bomb.tar"
        archive.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
        with archive.open("r+b") as file:
            file.truncate(2**34 + 4096)
        with pytest.raises(DatasetError, match=message):
            list(list_members(archive))
        archive.unlink()


def test_sizes_in_pax_headers_and_sparse_members_are_rejected(tmp_path: Path) -> None:
    for headers in ({"size": "99999999999"}, {"GNU.sparse.major": "1"}):
        with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            info = tarfile.TarInfo("a")
            info.pax_headers = headers
            archive.addfile(info)
        with pytest.raises(DatasetError, match="sparse or has more than 8 GB"):
            list(list_members(tmp_path / "s.tar"))


def test_changed_archive_is_noticed_when_a_member_is_read(tmp_path: Path) -> None:
    archive = write(tmp_path / "s.tar", "first", "second")
    first, second = list_members(archive)
    write(archive, "other", "second")
    with pytest.raises(MediaError, match="was changed or cut"):
        read_member(first)
    assert read_member(second) == b"second"
    archive.write_bytes(archive.read_bytes()[: second.start + 2])
    with pytest.raises(MediaError, match="was changed or cut"):
        read_member(second)
