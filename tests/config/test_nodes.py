"""Nodes of YAML files: parents, overrides, places, and rejected files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from detector.config import nodes
from detector.config.nodes import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    Mistakes,
    Node,
    Where,
    describe,
    find_config,
    merge,
    override_nodes,
    plain_of,
    presets_dir,
    read_nodes,
)
from detector.errors import ConfigError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a file into the working directory of the test and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write_file


def plain_file(path: Path) -> object:
    return plain_of(read_nodes(path))


# --- values and their places ---------------------------------------------------------------------------------------


def test_every_plain_value_is_read(write):
    path = write("a.yaml", 'a: 1\nb: 2.5\nc: text\nd: true\ne: null\nf: [1, x]\ng: {h: "é"}\ni:\n')
    assert plain_file(path) == {
        "a": 1,
        "b": 2.5,
        "c": "text",
        "d": True,
        "e": None,
        "f": [1, "x"],
        "g": {"h": "é"},
        "i": None,
    }


def test_node_has_its_file_line_and_folder(write):
    path = write("sub/a.yaml", "a: 1\nb:\n  c:\n    - 2\n    - 3\n")
    root = read_nodes(path)
    assert str(root.value["a"].where) == f"sub{os.sep}a.yaml:1"
    third = root.value["b"].value["c"].value[1]
    assert (third.value, third.where.line, third.where.folder) == (3, 5, path.parent)


def test_file_outside_the_working_directory_has_its_absolute_path(write, monkeypatch, tmp_path):
    path = write("a.yaml", "a: 1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(read_nodes(path).value["a"].where) == f"{path.resolve()}:1"


@pytest.mark.parametrize("content", ["", "# nothing\n", "\n\n"])
def test_empty_file_has_no_keys(write, content):
    assert plain_file(write("a.yaml", content)) == {}


def test_byte_order_mark_is_not_part_of_the_first_key(write):
    assert plain_file(write("a.yaml", b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")) == {"a": 1, "b": 2}


# --- base: ---------------------------------------------------------------------------------------------------------


def test_file_is_merged_with_its_parents_by_key(write):
    write("far/grand.yaml", "a: 1\nb: {x: 1, y: 1, deep: {p: 1}}\n")
    write("parent.yaml", "base: far/grand.yaml\nb: {y: 2}\nc: 2\n")
    path = write("child.yaml", "base: parent.yaml\nc: 3\nb: {deep: {q: 3}}\n")
    assert plain_file(path) == {"a": 1, "b": {"x": 1, "y": 2, "deep": {"p": 1, "q": 3}}, "c": 3}
    root = read_nodes(path)
    assert str(root.value["a"].where) == f"far{os.sep}grand.yaml:1"  # each value has its own place
    assert str(root.value["b"].value["y"].where) == "parent.yaml:2"


def test_list_or_scalar_replaces_that_of_the_parent(write):
    write("parent.yaml", "a: [1, 2, 3]\nb: {x: 1}\nc: 1\nd: 1\n")
    assert plain_file(write("child.yaml", "base: parent.yaml\na: [9]\nb: null\nc: {y: 2}\n")) == {
        "a": [9],
        "b": None,
        "c": {"y": 2},
        "d": 1,
    }


def test_parent_is_searched_beside_the_file_and_then_in_the_presets(write):
    write("sub/mish-n.yaml", "own: 1\n")
    assert plain_file(write("sub/a.yaml", "base: mish-n.yaml")) == {"own": 1}
    assert "own" not in plain_file(write("other/a.yaml", "base: mish-n"))
    assert plain_file(write("other/b.yaml", "base: mish-n")) == plain_file(write("other/c.yaml", "base: mish-n.yaml"))


def test_circle_of_parents_is_rejected_with_its_files(write):
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: c.yaml\n")
    write("c.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: base: leads back to this file through a\.yaml, b\.yaml, c\.yaml"):
        read_nodes(Path("a.yaml"))
    own = write("own.yaml", "base: own.yaml\n")
    with pytest.raises(ConfigError, match="leads back to this file"):
        read_nodes(own)


def test_parent_used_twice_is_not_a_circle(write):
    write("top.yaml", "a: 1\n")
    write("left.yaml", "base: top.yaml\n")
    assert plain_file(write("bottom.yaml", "base: left.yaml\nb: 2\n")) == {"a": 1, "b": 2}


@pytest.mark.parametrize(("base", "found"), [("[a, b]", "a list"), ("3", "the number 3"), ("on", "the bool true")])
def test_base_that_is_not_a_name_is_rejected(write, base, found):
    with pytest.raises(ConfigError, match=rf"a\.yaml:2: base: expected the name of one file, got {found}"):
        read_nodes(write("a.yaml", f"x: 1\nbase: {base}\n"))


def test_missing_parent_is_rejected_with_line_and_nearest_preset(write):
    with pytest.raises(
        ConfigError, match=r"a\.yaml:2: base: no configuration file .* 'mish-nn'; did you mean 'mish-n'"
    ):
        read_nodes(write("a.yaml", "x: 1\nbase: mish-nn\n"))


def test_mistake_in_a_parent_names_the_parent(write):
    write("parent.yaml", "a: 1\na: 2\n")
    with pytest.raises(ConfigError, match=r"^parent\.yaml:2: duplicate key 'a', first on line 1; keep one"):
        read_nodes(write("child.yaml", "base: parent.yaml\n"))


# --- merging -------------------------------------------------------------------------------------------------------


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipes(write, tmp_path, monkeypatch):
    """A recipe `fast` among presets of the test's own."""
    monkeypatch.setattr(nodes, "presets_dir", lambda: tmp_path / "presets")
    write("presets/recipes/fast.yaml", "optimizer: {name: sgd, lr: 1, decay: 2}\ntrain: {epochs: 3}\n")


def test_recipe_lies_between_the_parent_and_the_file_itself(write, recipes):
    write("base.yaml", "optimizer: {name: muon, lr: 9}\nmodel: {width: 1}\n")
    path = write("a.yaml", "base: base.yaml\nrecipe: fast\noptimizer: {lr: 5}\n")
    assert plain_file(path) == {
        "optimizer": {"name": "sgd", "lr": 5, "decay": 2},
        "model": {"width": 1},
        "train": {"epochs": 3},
    }


def test_recipe_among_overrides_lies_below_the_others(write, recipes):
    node = read_nodes(write("a.yaml", "optimizer: {name: muon, lr: 9}\n"))
    found = plain_of(nodes.with_overrides(node, ["optimizer.lr=5", "recipe=fast", "train.epochs=7"]))
    assert found == {"optimizer": {"name": "sgd", "lr": 5, "decay": 2}, "train": {"epochs": 7}}


@pytest.mark.parametrize("given", ["fats", "[a]", "3"])
def test_unknown_recipe_is_rejected_with_its_line(write, recipes, given):
    with pytest.raises(ConfigError, match=r"a.yaml:2: recipe: expected the name of a recipe, got .*'?fast"):
        read_nodes(write("a.yaml", f"a: 1\nrecipe: {given}\n"))


def nodes_of(plain: Any) -> Node:
    where = Where("test", 0, Path("."))
    if isinstance(plain, dict):
        return Node({k: nodes_of(v) for k, v in plain.items()}, where)
    return Node(plain, where)


@pytest.mark.parametrize(
    ("base", "over", "wanted"),
    [
        ({"name": "adamw", "lr": 1}, {"name": "sgd"}, {"name": "sgd"}),
        ({"name": "adamw", "lr": 1}, {"name": "adamw", "x": 2}, {"name": "adamw", "lr": 1, "x": 2}),
        ({"name": "adamw", "lr": 1}, {"x": 2}, {"name": "adamw", "lr": 1, "x": 2}),
        ({"lr": 1}, {"name": "sgd"}, {"lr": 1, "name": "sgd"}),
        ("adamw", {"lr": 2}, {"name": "adamw", "lr": 2}),
        ("adamw", {"name": "sgd", "lr": 2}, {"name": "sgd", "lr": 2}),
        ({"name": "adamw", "lr": 1}, "sgd", "sgd"),
        ({"a": {"name": "x", "k": 1}, "b": 1}, {"a": {"name": "y"}}, {"a": {"name": "y"}, "b": 1}),
        (None, {"a": 1}, {"a": 1}),
        ({"a": 1}, None, None),
        ([1], {"a": 1}, {"a": 1}),
    ],
)
def test_merging_is_by_key_unless_the_name_changes(base, over, wanted):
    assert plain_of(merge(nodes_of(base), nodes_of(over))) == wanted


def test_merging_does_not_change_its_arguments():
    base, over = nodes_of({"a": {"x": 1}}), nodes_of({"a": {"y": 2}})
    merge(base, over)
    assert plain_of(base) == {"a": {"x": 1}}
    assert plain_of(over) == {"a": {"y": 2}}


# --- overrides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=2.5", {"a": {"b": {"c": 2.5}}}),
        ("a=1e-3", {"a": 0.001}),
        ("a=1E5", {"a": 100000.0}),
        ("a=-2e-4", {"a": -0.0002}),
        ("a=.5e1", {"a": 5.0}),
        ("a=elephant", {"a": "elephant"}),
        ("a=1e-x", {"a": "1e-x"}),
        ("a=3e", {"a": "3e"}),
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ("a=", {"a": ""}),
        ("a='1e-3 of all'", {"a": "1e-3 of all"}),
        ("a=[1, 2]", {"a": [1, 2]}),
        ("a={b: 1, c: x}", {"a": {"b": 1, "c": "x"}}),
        ("a=b=c", {"a": "b=c"}),
        ("a=C:/x", {"a": "C:/x"}),
        ("a=/tmp/x.yaml", {"a": "/tmp/x.yaml"}),
        ("a=ümlaut", {"a": "ümlaut"}),
    ],
)
def test_override_gives_the_same_nodes_as_a_file(text, wanted):
    assert plain_of(override_nodes(text)) == wanted


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "a.=1", "a b=1", "1a=2", "a-b=1", "", "a.b"])
def test_text_that_is_not_an_override_is_rejected(text):
    with pytest.raises(ConfigError, match="expected an override key=value, such as "):
        override_nodes(text)


@pytest.mark.parametrize("text", ["a=[1", "a=!!python/name:os.system", "a=*x", "a=&x 1", "a={b: 1, b: 2}", "a=b: c: d"])
def test_override_follows_the_rules_of_a_file(text):
    with pytest.raises(ConfigError, match="override "):
        override_nodes(text)


def test_override_is_reported_by_its_text(write):
    node = override_nodes("a.b=[1, {c: 2}]")
    leaf = node.value["a"].value["b"].value[1].value["c"]
    assert str(leaf.where) == "override 'a.b=[1, {c: 2}]'"
    assert leaf.where.folder == Path.cwd()


# --- rejected files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"^a\.yaml:3: duplicate key 'a', first on line 1; keep one$"),
        ("x: {a: 1,\n a: 2}\n", r"^a\.yaml:2: duplicate key 'a', first on line 1; keep one$"),
        ("a: &x [1]\nb: *x\n", r"^a\.yaml:1: anchors and aliases are not allowed; write the value out or use base:$"),
        ("b: *x\n", r"^a\.yaml:1: anchors and aliases are not allowed"),
        ("a:\n  <<: {b: 1}\n", r"^a\.yaml:2: expected text as a key, got '<<'"),
        ("a: !!python/object/apply:os.system ['touch x']\n", r"^a\.yaml:1: the tag '.*os\.system' is not allowed"),
        ("a: !mine 3\n", r"^a\.yaml:1: the tag '!mine' is not allowed, .* plain data only; remove it$"),
        ("a: !!binary aGk=\n", r"the tag '.*binary' is not allowed"),
        ("a: !!set {x}\n", r"the tag '.*set' is not allowed"),
        ("a: !!int x\n", r"^a\.yaml:1: 'x' is not a value YAML can read .*; put it in quotes if it is text$"),
        ("a: 2020-99-99\n", r"^a\.yaml:1: '2020-99-99' is not a value YAML can read"),
        ("a: 1\non: 2\n", r"^a\.yaml:2: expected text as a key, got 'on' \(YAML reads it as a bool.*quotes\)$"),
        ("1: 2\n", r"expected text as a key, got '1'"),
        ("? [a, b]\n: 1\n", r"expected text as a key, got a section or list"),
        ("a: [1\nb: 2\n", r"^a\.yaml:2:\d+: not valid YAML, "),
        ("a: 1\n\tb: 2\n", r"^a\.yaml:2:1: not valid YAML, found character '\\t'"),
        ("a: 1\n---\nb: 2\n", r"^a\.yaml:2:1: not valid YAML, but found another document$"),
        ("[1, 2]\n", r"^a\.yaml:1: expected a configuration of keys and values, got a list$"),
        ("text\n", r"got the text 'text'$"),
        (b"\x00\x01", r"^a\.yaml: not valid YAML, unacceptable character #x0000"),
        (b"a: \xff\xfe\n", r"^a\.yaml: not UTF-8 text, byte 3 is 0xff$"),
        (b"\x89PNG\r\n\x1a\n", r"^a\.yaml: not UTF-8 text, byte 0 is 0x89$"),
        ("a: 0x" + "f" * 6000 + "\n", r"^a\.yaml:1: expected a whole number of at most \d+, got '0xfff.*\.\.\.;"),
        ("a: -9223372036854775808\n", "expected a whole number of at most 9223372036854775807"),
        ("a: " + "9" * 5000 + "\n", r"a\.yaml:1: .*999\.\.\. is not a value YAML can read"),
    ],
)
def test_file_that_is_not_plain_yaml_is_rejected(write, content, message):
    path = write("a.yaml", content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_nodes(path)
    assert len(str(caught.value)) < 500
    assert not Path("x").exists()


def test_largest_whole_number_is_read(write):
    assert plain_file(write("a.yaml", f"a: {2**63 - 1}\n")) == {"a": 2**63 - 1}


def test_alias_bomb_is_rejected_at_once(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    path = write("a.yaml", "\n".join(lines))
    started_s = time.process_time()
    with pytest.raises(ConfigError, match="anchors and aliases are not allowed"):
        read_nodes(path)
    assert time.process_time() - started_s < 2


FILLED = [
    "[" * (MAX_FILE_BYTES - 1),
    "{a: " * (MAX_FILE_BYTES // 4),
    "- " * (MAX_FILE_BYTES // 2),
    "? " * (MAX_FILE_BYTES // 2),
    "!" * (MAX_FILE_BYTES - 1),
    "a:\n" + "- 1\n" * (MAX_FILE_BYTES // 4 - 2),
    "[" + "1," * (MAX_FILE_BYTES // 2 - 2) + "]",
    "\n".join(f"k{i}: {i}" for i in range(5000)),
    '"' + "a" * (MAX_FILE_BYTES - 3) + '"',
    "a: 'x\n" + "\n" * (MAX_FILE_BYTES - 10),
]


@pytest.mark.parametrize("content", FILLED, ids=lambda content: ascii(content[:6]))
def test_largest_file_is_read_within_seconds(write, content):
    path = write("a.yaml", content)
    assert path.stat().st_size <= MAX_FILE_BYTES
    started_s = time.process_time()
    try:
        read_nodes(path)
    except ConfigError as error:
        assert len(str(error)) < 500  # noqa: PT017 (several of them are valid YAML)
    assert time.process_time() - started_s < 5


def test_file_over_the_size_limit_is_not_read(write):
    path = write("a.yaml", b"a: 1\n" * MAX_FILE_BYTES)
    with pytest.raises(
        ConfigError, match=rf"^a\.yaml: expected a configuration of at most {MAX_FILE_BYTES} bytes, got more"
    ):
        read_nodes(path)


def test_nesting_is_limited(write):
    deep = "\n".join(" " * i + "a:" for i in range(MAX_DEPTH)) + " 1"
    read_nodes(write("a.yaml", deep))
    deeper = "\n".join(" " * i + "a:" for i in range(MAX_DEPTH + 1)) + " 1"
    with pytest.raises(ConfigError, match=rf"^b\.yaml:\d+: sections nest deeper than {MAX_DEPTH}; flatten them$"):
        read_nodes(write("b.yaml", deeper))


# --- finding -------------------------------------------------------------------------------------------------------


def test_name_is_a_path_first_and_a_preset_second(write):
    own = write("mish-n.yaml", "x: 1")
    assert find_config("mish-n.yaml").resolve() == own.resolve()
    assert find_config("mish-n") == presets_dir() / "mish-n.yaml"
    assert find_config("mish-s.yaml") == presets_dir() / "mish-s.yaml"
    assert (presets_dir() / "base.yaml").is_file()


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "..", "nothing", "nothing.yaml", "sub/mish-n", "../cfg/mish-n", "a" * 5000, "a\0b", "mish-n/"],
)
def test_unknown_name_is_rejected_with_the_known_ones(write, name):
    with pytest.raises(ConfigError, match="no configuration file or preset is named ") as caught:
        find_config(name, relative_to=Path.cwd())
    assert "mish-n" in str(caught.value)
    assert len(str(caught.value)) < 180 + sum(len(path.stem) + 2 for path in presets_dir().glob("*.yaml"))


def test_unreadable_file_is_rejected(write, monkeypatch):
    path = write("a.yaml", "a: 1")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"^a\.yaml: cannot be read, Permission denied$"):
        read_nodes(path)


# --- messages ------------------------------------------------------------------------------------------------------


def test_value_is_described_in_words():
    assert describe(None) == "nothing"
    assert describe(True) == "the bool true"
    assert [describe(v) for v in (3, 2.5)] == ["the number 3", "the number 2.5"]
    assert describe("x") == "the text 'x'"
    assert [describe(v) for v in ({}, [1])] == ["a section", "a list"]
    assert describe(2**70) == "a number of more than 64 bits"


def test_mistakes_are_listed_once_each_and_up_to_a_limit():
    mistakes = Mistakes()
    mistakes.raise_any()
    for _ in range(2):
        mistakes.add(Where("a.yaml", 3, Path(".")), "wrong")
    with pytest.raises(ConfigError, match=r"^a\.yaml:3: wrong$"):
        mistakes.raise_any()
    mistakes.extend(f"mistake {i}" for i in range(1000))
    with pytest.raises(ConfigError) as caught:
        mistakes.raise_any()
    lines = str(caught.value).splitlines()
    assert len(lines) == nodes.MAX_MISTAKES_SHOWN + 1
    assert lines[-1] == f"and {1001 - nodes.MAX_MISTAKES_SHOWN} more mistakes"
