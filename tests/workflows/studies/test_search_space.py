"""Keys of a search: ranges, lists, and their values as overrides."""

from __future__ import annotations

import pytest

from detector.errors import ConfigError
from detector.workflows.studies.search_space import SearchedKey, require_searchable, values_text


@pytest.mark.parametrize(
    ("text", "key", "probes"),
    [
        (
            "optimizer.lr=1e-4..1e-2,log",
            SearchedKey("optimizer.lr", 1e-4, 1e-2, is_log=True),
            ("optimizer.lr=0.0001", "optimizer.lr=0.01"),
        ),
        ("augment.scale=0..0.5", SearchedKey("augment.scale", 0.0, 0.5), ("augment.scale=0.0", "augment.scale=0.5")),
        ("a.b=1..8", SearchedKey("a.b", 1, 8, is_whole=True), ("a.b=1", "a.b=8")),
        ("a.b=-3..8", SearchedKey("a.b", -3, 8, is_whole=True), ("a.b=-3", "a.b=8")),
        ("a.b=[x, 2, true, 1e-3]", SearchedKey("a.b", choices=("x", "2", "true", "1e-3")), None),
        (
            "model.levels=[[8, 16, 32], [4, 8, 16, 32]]",
            SearchedKey("model.levels", choices=("[8, 16, 32]", "[4, 8, 16, 32]")),
            ("model.levels=[8, 16, 32]", "model.levels=[4, 8, 16, 32]"),
        ),
    ],
)
def test_a_key_is_parsed_and_gives_overrides(text, key, probes):
    found = SearchedKey.parse(text)
    assert found == key
    assert probes is None or found.probes() == probes
    assert [found.override(found.value_of(probe)) for probe in found.probes()] == list(found.probes())


@pytest.mark.parametrize(
    "text",
    [
        *("lr", "=1..2", "a b=1..2", "a=", "a=1", "a=1..", "a=2..1", "a=1..1", "a=0..1,log", "a=nan..1", "a=1..inf"),
        *("a=[]", "a=[1]", "a=[1, 1]", "a=[1", "a=1..2..3", "a=x..y"),
    ],
)
def test_another_form_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"--search|override") as error:
        SearchedKey.parse(text)
    assert text in str(error.value) or "values=" in str(error.value)


def test_given_values_are_used_where_the_search_can_try_them():
    plain = {"optimizer": {"lr": 0.006, "nesterov": True}, "model": {"levels": [8, 16, 32]}, "n": 3}
    assert SearchedKey.parse("optimizer.lr=1e-3..1e-2").given(plain) == 0.006
    assert SearchedKey.parse("optimizer.lr=1e-1..1").given(plain) is None
    assert SearchedKey.parse("optimizer.nesterov=0..1").given(plain) is None
    assert SearchedKey.parse("model.levels=[[4, 8], [8, 16, 32]]").given(plain) == "[8, 16, 32]"
    assert SearchedKey.parse("n=1..4").given(plain) == 3
    assert SearchedKey.parse("loss.box=1..4").given(plain) is None


def test_rates_that_a_run_from_given_weights_does_not_reach_are_refused():
    def require(search, *overrides):
        require_searchable([SearchedKey.parse(search)], "mish-n", overrides)

    weights = "train.weights=mish-n-drawn"
    with pytest.raises(
        ConfigError, match=r"expected rates up to optimizer\.fine_tuning_lr=0\.001, .*, got 0\.01; search"
    ):
        require("optimizer.lr=1e-4..1e-2", weights)
    require("optimizer.lr=1e-4..1e-3", weights)
    require("optimizer.lr=1e-4..1e-2")
    require("optimizer.lr=1e-4..1e-2", weights, "optimizer.fine_tuning_lr=null")
    require("optimizer.fine_tuning_lr=1e-4..1e-2", weights)


def test_numbers_are_rounded_within_the_range():
    key = SearchedKey.parse("a=0.00012344..1")
    assert key.rounded(0.123456) == 0.1235
    assert key.rounded(0.00012344) == 0.00012344
    assert key.rounded("x") == "x"
    assert values_text({"a": 0.25, "b": "x"}) == "a=0.25, b=x"
    assert values_text({}) == "the given settings"


def test_mistakes_of_all_keys_are_reported_together():
    keys = [SearchedKey.parse(t) for t in ("optimizer.lrr=1..2", "augment.mosaic=0.5..1.5", "loss.box=4..9")]
    with pytest.raises(ConfigError) as error:
        require_searchable(keys, "mish-n", ["loss.box=5"])
    lines = str(error.value).splitlines()
    assert any("unknown key 'optimizer.lrr'" in line for line in lines)
    assert any(line.startswith("--search augment.mosaic: ") and "within 0..1" in line for line in lines)
    assert any("--search loss.box: expected a key that nothing else sets, got also loss.box" in t for t in lines)
    require_searchable([SearchedKey.parse("loss.box=4..9")], "mish-n", [])
