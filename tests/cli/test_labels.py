from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.cli.main import run
from detector.data.coco import read_coco
from detector.data.label_decisions import FORMAT
from detector.evaluation.confidence import Threshold
from detector.evaluation.label_suspects import overlaps
from detector.models.checkpoint import load_model_file
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import read_split
from detector.tasks.task import config_of_file
from detector.workflows.label_review import origin_of


def called(*words: object) -> int:
    return run(["labels", *map(str, words)])


def test_suspects_of_a_split_are_written_as_page_and_list(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("suspects", trained.weights, trained.data, "--out", tmp_path, "--num", "5", "--json", "-q") == 0
    printed = json.loads(capsys.readouterr().out)
    listed = json.loads((tmp_path / "suspects.json").read_text())
    assert listed["suspects"][:5] == printed["suspects"]
    assert len(listed["suspects"]) == printed["num_listed"] >= printed["num_labels"]
    assert printed["origin"].startswith("The model was ")
    page = (tmp_path / "review.html").read_text()
    assert page.count("data:image/jpeg;base64") == 5
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_origin_tells_how_many_of_the_images_a_model_was_trained_on(trained: Any, tiny_shapes: Path) -> None:
    file = load_model_file(trained.weights)
    # The process of pytest that trained the model has its own copy of the images.
    carried, _ = config_of_file(DetectionConfig, file, trained.weights)
    assert "was trained on 6 of these 6 images" in origin_of(file, trained.weights, read_split(carried, "train"))
    others = read_coco(tiny_shapes / "annotations/train.json", tiny_shapes / "images/train")
    assert "was not trained on these images" in origin_of(file, trained.weights, others)


def test_nothing_is_missing_where_a_label_of_a_class_that_the_model_lacks_is(trained: Any, tmp_path: Path) -> None:
    content = json.loads(trained.annotations.read_text())
    lacking = content["categories"][0]
    lacking["name"] = "of no model"
    (tmp_path / "val.json").write_text(json.dumps(content))
    part = f"{{annotations: {tmp_path}/val.json, images: {trained.images}}}"
    data = f"data={{name: coco, train: {part}, val: {part}}}"
    assert called("suspects", trained.weights, data, "--out", tmp_path / "review", "-q") == 0
    suspects = json.loads((tmp_path / "review/suspects.json").read_text())["suspects"]
    assert lacking["id"] not in {suspect["category_id"] for suspect in suspects}
    for suspect in suspects:
        if suspect["kind"] == "missing":
            own = [row["bbox"] for row in content["annotations"] if row["image_id"] == suspect["image_id"]]
            assert overlaps(np.array([suspect["proposed_bbox"]]), np.array(own)).max(initial=0) < 0.5
    page = (tmp_path / "review/review.html").read_text()
    assert '"name": "of no model"' in page  # it can be chosen


def test_decisions_are_applied_to_a_new_file(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("suspects", trained.weights, trained.data, "--out", tmp_path, "--num", "30", "-q") == 0
    text = (tmp_path / "review.html").read_text().partition("id='suspects'>")[2].partition("</script>")[0]
    page = json.loads(text)
    keys = ("format", "version", "annotations", "annotations_sha256")
    decisions = [{**suspect, "decision": "accept"} for suspect in page["suspects"]]
    assert page["format"] == FORMAT
    path, new = tmp_path / "decisions.json", tmp_path / "new.json"
    saved = json.dumps({**{key: page[key] for key in keys}, "decisions": decisions})
    path.write_text(re.sub(r'("\w*_id": )"(-?\d+)"', r"\1\2", saved))  # as the page saves its ids
    before = trained.annotations.read_bytes()
    capsys.readouterr()
    words = ("apply", path, "--annotations", trained.annotations, "--out", new)
    assert called(*words, "--json") == 0
    applied = json.loads(capsys.readouterr().out)
    assert trained.annotations.read_bytes() == before
    num_extra = sum(suspect["kind"] == "extra" for suspect in page["suspects"])
    assert applied["num_removed"] == num_extra
    num_before = read_coco(trained.annotations, None).num_boxes
    assert read_coco(new, None).num_boxes == num_before - num_extra + applied["num_added"]
    assert called(*words) == 3
    assert "no file is replaced" in capsys.readouterr().err


def test_pseudo_labels_carry_scores_and_provenance(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pseudo.json"
    words = ("pseudo", trained.weights, trained.images, "--out", out)
    assert called(*words) == 2
    assert "holds no thresholds" in capsys.readouterr().err
    assert called(*words, trained.data, "--threshold-for", "f1", "--json", "-q") == 0
    printed, content = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    thresholds = content["info"]["thresholds"]
    assert content["info"]["thresholds_from"] == "best F1 on the 6 images of val.json"
    assert len(content["info"]["model_sha256"]) == 64
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert content["annotations"]
    for row in content["annotations"]:
        assert row["score"] >= thresholds[names[row["category_id"]]]
        assert row["origin"] == "pseudo-label"
    assert sum(printed["num_labels"].values()) == len(content["annotations"])
    assert printed["num_images"] + printed["num_left_out"] == 6
    assert read_coco(out, trained.images).num_boxes == len(content["annotations"])


def test_class_that_reaches_the_target_at_no_threshold_gets_no_pseudo_labels(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("pseudo", trained.weights, trained.images, trained.data)
    names = load_model_file(trained.weights).class_names
    is_reached = [False, *[True] * (len(names) - 1)]
    found = [Threshold(0.0, 0.5, 0.5, 0.5, each) for each in is_reached]
    chosen = "detector.evaluation.operating_point.choose_thresholds"
    monkeypatch.setattr(chosen, lambda *_: (found[0], tuple(found)))
    assert called(*words, "--out", tmp_path / "some.json", "--json") == 0
    told = capsys.readouterr()
    target = "precision of at least 0.9 on the 6 images of val.json"
    assert f"{names[0]}: no threshold reaches the target ({target}), these get no labels" in told.err
    printed = json.loads(told.out)
    assert list(printed["thresholds"]) == list(names[1:])
    assert printed["num_labels"][names[0]] == 0
    assert all(printed["num_labels"][name] for name in names[1:])
    stored = tmp_path / "stored.safetensors"
    assert run(["evaluate", str(trained.weights), "--store-thresholds", str(stored), "-q"]) == 0
    assert called("pseudo", stored, trained.images, "--out", tmp_path / "stored.json", "-q") == 0
    assert list(json.loads((tmp_path / "stored.json").read_text())["info"]["thresholds"]) == list(names[1:])
    found[1:] = [found[0]] * (len(names) - 1)
    assert called(*words, "--out", tmp_path / "none.json") == 2
    assert "no class is left to label" in capsys.readouterr().err


def test_pseudo_labels_of_a_path_with_dots_can_be_read_again(trained: Any, tmp_path: Path) -> None:
    out, folder = tmp_path / "pseudo.json", trained.images
    first = next(iter(sorted(folder.iterdir())))
    words = (folder / ".." / folder.name / first.name, folder, "--confidence", "0", "--keep-empty", "--out", out)
    assert called("pseudo", trained.weights, *words, "-q") == 0
    assert len(read_coco(out, folder)) == 6


def test_one_confidence_and_empty_images_can_be_asked_for(trained: Any, tmp_path: Path) -> None:
    out = tmp_path / "pseudo.json"
    words = ("pseudo", trained.weights, trained.images, "--out", out, "-q")
    assert called(*words, "--confidence", "1") == 3  # nothing is as certain
    assert called(*words, "--confidence", "1", "--keep-empty") == 0
    content = json.loads(out.read_text())
    assert (len(content["images"]), content["annotations"]) == (6, [])


def test_images_are_ranked_by_value_or_at_random(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ranked(*words: object) -> list[dict[str, Any]]:
        assert called("rank", trained.weights, trained.images, "--json", "-q", *words) == 0
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        return rows

    by_value, at_random = ranked(), ranked("--random", "--seed", "3")
    values = [row["value"] for row in by_value]
    assert values == sorted(values, reverse=True)
    assert len(by_value) == 6
    assert sorted(row["path"] for row in by_value) == sorted(row["path"] for row in at_random)
    assert at_random == ranked("--random", "--seed", "3") != by_value
    assert ranked("--num", "2", "--out", tmp_path / "next.txt") == by_value[:2]
    assert (tmp_path / "next.txt").read_text().split() == [row["path"] for row in by_value[:2]]
    assert called("rank", trained.weights, trained.images, "--out", tmp_path / "none/next.txt", "-q") == 1
    assert "next.txt cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected an action, one of suspects, apply, pseudo, rank; got none"),
        (("suspect",), "did you mean 'suspects'"),
        (("suspects",), "expected one model file, got none"),
        (("suspects", "a.safetensors", "--results", "r.json"), "give all three and no model"),
        (("apply", "d.json", "--out", "n.json"), "give --annotations FILE.json"),
        (("apply", "d.json", "--annotations", "a.json"), "give --out FILE.json"),
        (("apply", "d.json", "--annotations", "a.json", "--out", "n.json", "--num", "3"), "--num belongs to suspects"),
        (("pseudo", "a.safetensors", "--out", "n.json"), "expected a model file and images"),
        (("pseudo", "a.safetensors", "x", "--out", "n.json", "--confidence", "2"), "expected a value within 0..1"),
        (("pseudo", "a.safetensors", "x", "--out", "n.json", "--split", "val"), "choose thresholds on data="),
        (
            ("pseudo", "a.safetensors", "x", "data=shapes", "--out", "n", "--confidence", "1", "--threshold-for", "f1"),
            "leave",
        ),
        (("rank", "a.safetensors", "x", "--seed", "2"), "--seed belongs to --random"),
        (("rank", "a.safetensors", "x", "input.sise=3"), "unknown key 'input.sise'"),
    ],
)
def test_mistakes_are_answered_before_anything_is_read(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(*words) == 2
    assert message in capsys.readouterr().err


def test_help_of_an_action_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        called("rank", "--help")
    text = capsys.readouterr().out
    assert "--random" in text
    assert "--keep-empty" not in text
    assert "DECISIONS" not in text
