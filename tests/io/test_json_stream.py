from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from detector.errors import DatasetError
from detector.io import json_stream
from detector.io.json_stream import read_items

LISTS = ("images", "annotations")


@pytest.fixture(params=[1, 7, 64, 2**20])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows of several widths, so that values, words, characters and escapes are cut at every place."""
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", request.param)
    return int(request.param)


def write(folder: Path, text: str) -> Path:
    path = folder / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def collect(path: Path) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    found: dict[str, Any] = {}
    twice: list[tuple[str, str]] = []
    for key, position, value in read_items(path, LISTS, lambda name, place: twice.append((name, place))):
        if position < 0:
            found[key] = value
        else:
            assert position == len(found[key])
            found[key].append(value)
    return found, twice


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        collect(path)
    return str(caught.value)


def some_value(rng: random.Random, depth: int) -> Any:
    kinds = [
        lambda: rng.choice([None, True, False]),
        lambda: rng.randint(-(10**20), 10**20),
        lambda: rng.uniform(-1e9, 1e9) * 10 ** rng.randint(-200, 200),
        lambda: "".join(rng.choice('ab"\\\n\t/ é图🚗\u2028') for _ in range(rng.randint(0, 12))),
        lambda: [some_value(rng, depth + 1) for _ in range(rng.randint(0, 4))],
        lambda: {str(rng.randint(0, 99)): some_value(rng, depth + 1) for _ in range(rng.randint(0, 4))},
    ]
    return rng.choice(kinds[: 4 if depth > 2 else 6])()


@pytest.mark.parametrize("style", [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_values_equal_those_of_json(style: dict[str, Any], chunk_bytes: int, tmp_path: Path) -> None:
    rng = random.Random(4)
    for _ in range(20):
        document = {key: some_value(rng, 0) for key in ("info", "images", "x", "annotations", "")}
        document["images"] = [some_value(rng, 1) for _ in range(rng.randint(0, 9))]
        found, twice = collect(write(tmp_path, json.dumps(document, **style)))
        assert found == {key: document[key] for key in LISTS}
        assert twice == []


@pytest.mark.parametrize("style", [{}, {"indent": 2}])
def test_truncated_file_is_refused_at_the_place_where_json_refuses_it(
    style: dict[str, Any], chunk_bytes: int, tmp_path: Path
) -> None:
    document = {"images": [{"id": -1.5e3, "n": "a\\é"}, [True, None]], "x": {"y": "\ud83d\ude97"}, "annotations": []}
    text = json.dumps(document, **style)
    for end in range(1, len(text)):
        with pytest.raises(json.JSONDecodeError) as caught:
            json.loads(text[:end])
        error = caught.value
        message = refused(write(tmp_path, text[:end]))
        assert f"x.json is not JSON, line {error.lineno}, column {error.colno}: {error.msg};" in message


def test_changed_character_is_read_or_refused_as_by_json(chunk_bytes: int, tmp_path: Path) -> None:
    rng = random.Random(8)
    text = json.dumps({"images": [{"id": 1, "n": "ab"}, 2.5, []], "x": {"y": [None]}, "annotations": [1, 2]}, indent=1)
    for _ in range(150):
        at = rng.randrange(len(text))
        damaged = text[:at] + rng.choice('{}[],:"0e-.tn \n\0\\') + text[at + rng.randint(0, 1) :]
        path, wanted, document = write(tmp_path, damaged), "", None
        try:
            document = json.loads(damaged)
        except json.JSONDecodeError as error:
            wanted = f"line {error.lineno}, column {error.colno}: {error.msg};"
        if wanted and damaged[:1] == "{":
            assert wanted in refused(path)
        elif isinstance(document, dict):
            assert collect(path)[0] == {key: document[key] for key in LISTS if key in document}


def test_duplicate_key_is_reported_with_its_place_and_its_last_value_is_used(chunk_bytes: int, tmp_path: Path) -> None:
    text = '{"images": [1], "x": {"a": {"b": 1, "b": 2}}, "images": [{"c": 1}, {"c": 2, "d": 0, "c": 3}], "x": 1}'
    found, twice = collect(write(tmp_path, text))
    assert found == {"images": [{"c": 1}, {"c": 3, "d": 0}]}
    assert twice == [("b", "x"), ("images", "the file"), ("c", "images[1]"), ("x", "the file")]


@pytest.mark.parametrize(("text", "value"), [("[1, 2", []), (" null", None), ('"x"', "x"), ("12", 12), ("[", [])])
def test_file_without_an_object_is_reported(text: str, value: Any, chunk_bytes: int, tmp_path: Path) -> None:
    assert collect(write(tmp_path, text))[0] == {"": value}


def test_values_that_are_not_lists_are_reported(tmp_path: Path) -> None:
    assert collect(write(tmp_path, '{"images": {"a": 1}, "annotations": null}'))[0] == {
        "images": {"a": 1},
        "annotations": None,
    }


@pytest.mark.parametrize("at", [0, 5, 70])
def test_invalid_utf_8_is_refused_with_its_place(at: int, chunk_bytes: int, tmp_path: Path) -> None:
    content = ('{"images": [' + ", ".join('"é图🚗"' for _ in range(9)) + "]}").encode()
    at = content.index(b'"', at)
    path = tmp_path / "x.json"
    path.write_bytes(content[: at + 1] + b"\xff" + content[at + 1 :])
    assert f"x.json is not JSON in UTF-8, at byte {at + 1}; save it as UTF-8" in refused(path)
    path.write_bytes(content[:-16])
    assert "x.json is not JSON" in refused(path)


def test_an_error_early_in_a_large_file_does_not_read_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK_BYTES", 100)
    path = tmp_path / "x.json"
    path.write_bytes(b'{"images": [{"a" 1}, ' + b" " * 1000 + b"\xff")  # the invalid byte is never reached
    assert "line 1, column 18: Expecting ':' delimiter" in refused(path)


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(tmp_path)
    assert "gone.json cannot be read: No such file" in refused(tmp_path / "gone.json")
    os.mkfifo(tmp_path / "pipe.json")
    assert "pipe.json cannot be read: it is a pipe or a device" in refused(tmp_path / "pipe.json")


def test_object_with_many_duplicate_keys_is_read_fast(tmp_path: Path) -> None:
    text = ", ".join(f'"{i % 50_000}": 0' for i in range(100_000))
    start_s = time.process_time()
    _, twice = collect(write(tmp_path, f'{{"images": [{{{text}}}]}}'))
    assert len(twice) == 50_000
    assert time.process_time() - start_s < 2
