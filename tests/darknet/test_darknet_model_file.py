from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.config.schema import config_from_plain, config_to_plain
from detector.darknet.darknet_model_file import (
    class_names_of,
    find_cfg_of,
    is_darknet_weights,
    load_darknet_file,
    num_classes_of,
    save_darknet_files,
)
from detector.darknet.network import CfgText, DarknetNet
from detector.errors import CheckpointError, ConfigError, DarknetError, DetectorError
from detector.models.checkpoint import load_model_file, save_model
from detector.tasks.detection_config import DetectionConfig
from detector.tasks.detection_model import load_detection, load_model

TINY = Path(__file__).parents[1] / "darknet" / "tiny.cfg"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A .weights file with its .cfg beside it."""
    torch.manual_seed(0)
    net = DarknetNet(DarknetNet.Config(CfgText.of_file(str(TINY))), 3)
    net.seen.fill_(640)
    net.save_weights(tmp_path / "net.weights")
    (tmp_path / "net.cfg").write_text(TINY.read_text("utf-8"), encoding="utf-8")
    return tmp_path / "net.weights"


def images() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))


def test_weights_file_is_recognised_by_its_name_or_its_first_bytes(weights: Path, tmp_path: Path) -> None:
    partial = tmp_path / "net.conv.6"
    partial.write_bytes(weights.read_bytes()[:100])
    assert is_darknet_weights(weights)
    assert is_darknet_weights(partial)
    assert is_darknet_weights(tmp_path / "missing.weights")  # its reader reports that it is missing
    save_model(tmp_path / "net.safetensors", load_darknet_file(weights, find_cfg_of(weights)))
    (tmp_path / "text.txt").write_text("a text of some length")
    (tmp_path / "empty").touch()
    for name in ("net.safetensors", "text.txt", "empty", "net.cfg", "missing", "."):
        assert not is_darknet_weights(tmp_path / name), name


def test_model_of_a_weights_file_has_the_settings_of_its_cfg(weights: Path) -> None:
    loaded = load_model(weights)
    assert loaded.file.class_names == ("0", "1", "2")
    assert loaded.config.loss == config_from_plain(DetectionConfig, {"loss": {"name": "anchor"}}, "test").loss
    assert loaded.config.input.canvas_hw == (64, 64)
    assert (loaded.config.input.fit, loaded.config.input.arithmetic) == ("stretch", "darknet")
    for select, iou in ((loaded.config.predict, 0.45), (loaded.config.evaluate, 0.6)):
        assert (select.nms, select.iou, select.nms_beta) == ("greedy", iou, 0.6)
    assert isinstance(loaded.model, DarknetNet)
    assert int(loaded.model.seen) == 640
    overridden = load_model(weights, ["input.size=96", "predict.nms=plain", "input.fit=letterbox"]).config
    assert (overridden.input.size, overridden.predict.nms, overridden.evaluate.nms) == (96, "plain", "greedy")
    assert overridden.input.arithmetic == "darknet"


def test_settings_of_a_cfg_apply_however_it_is_given(tmp_path: Path) -> None:
    text = TINY.read_text("utf-8").replace("[net]\n", "[net]\nletter_box=1\n").replace("width=64", "width=96")
    path = tmp_path / "boxed.cfg"
    path.write_text(text.replace("nms_kind=greedynms", "nms_kind=diounms\nbeta_nms=0.7"))
    (tmp_path / "mine.yaml").write_text("model: {name: darknet, cfg: boxed.cfg}\npredict: {iou: 0.5}\n")
    configs = [
        load_detection(str(path)),
        load_detection("mish-n", [f"model={{name: darknet, cfg: {path}}}"]),
        load_detection(str(tmp_path / "mine.yaml")),
    ]
    for config in configs:
        assert config.input.size == (64, 96)
        assert config.input.fit == "letterbox"
        assert (config.predict.nms, config.predict.nms_beta) == ("diou", 0.7)
        again = config_from_plain(DetectionConfig, config_to_plain(config), "again")
        assert again == config
    assert [config.predict.iou for config in configs] == [0.45, 0.45, 0.5]
    assert load_detection("yolov4-tiny.cfg").input.size == 416
    assert load_detection("mish-n").input.fit == "letterbox"  # other models are not affected


def test_missing_or_wrong_cfg_is_reported_with_its_location(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.cfg: 'yolov4-tinny': no such \.cfg; did you mean 'yolov4-tiny'"):
        load_detection("mish-n", ["model={name: darknet, cfg: yolov4-tinny}"])
    (tmp_path / "bad.cfg").write_text("[net]\nwidth=64\nheight=64\nchannels=3\n[crnn]\n")
    with pytest.raises(DarknetError, match=r"bad\.cfg:5: \[crnn\] cannot be honoured"):
        load_detection(str(tmp_path / "bad.cfg"))


def test_weights_without_a_cfg_beside_them_use_the_shipped_one_of_that_name(weights: Path, tmp_path: Path) -> None:
    assert find_cfg_of(weights).text == TINY.read_text("utf-8")
    assert find_cfg_of(tmp_path / "yolov4-tiny.weights").file == "yolov4-tiny.cfg"
    assert find_cfg_of(tmp_path / "yolov4.weights", cfg="yolov3").file == "yolov3.cfg"
    with pytest.raises(DarknetError, match=r"other\.weights: there is no other\.cfg beside it; name the network"):
        find_cfg_of(tmp_path / "other.weights")
    with pytest.raises(DarknetError, match="bytes too"):
        load_model(weights, cfg="yolov4-tiny")


def test_names_come_from_the_list_given_or_the_one_beside_the_weights(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "net.names").write_text("ball\nbox\nstar\n\n")
    assert load_model(weights).file.class_names == ("ball", "box", "star")
    given = tmp_path / "other.names"
    given.write_bytes(b"a\r\nb\r\nc")
    assert load_model(weights, names=given).file.class_names == ("a", "b", "c")
    given.write_text("a\nb\n")
    with pytest.raises(DetectorError, match=r"other\.names: expected 3 names, one per class of the network, got 2"):
        load_model(weights, names=given)
    with pytest.raises(DetectorError, match="missing"):
        class_names_of(weights, tmp_path / "missing.names", 3)


def test_partial_file_gives_its_own_tensors(weights: Path, tmp_path: Path) -> None:
    sizes = 4 * (8 * (4 + 27) + 16 * (4 + 72) + 16 * (4 + 144))
    partial = tmp_path / "net.conv.3"
    partial.write_bytes(weights.read_bytes()[: 20 + sizes])
    file = load_darknet_file(partial, CfgText.of_file(str(TINY)), partial=True)
    assert {name.split(".")[1] for name in file.state if name.endswith("conv.weight")} == {"0", "1", "2"}
    with pytest.raises(DarknetError, match="bytes too short"):
        load_darknet_file(partial, CfgText.of_file(str(TINY)))


def test_heads_with_different_numbers_of_classes_are_refused() -> None:
    text = TINY.read_text("utf-8")
    first, last = text.rsplit("classes=3", 1)
    changed = CfgText("two.cfg", f"{first}classes=4{last}".replace("filters=16\nactivation=linear", "filters=18\n"))
    with pytest.raises(
        DarknetError, match=r"two\.cfg: expected the same number of classes in all heads, got 3 on line"
    ):
        num_classes_of(changed.parsed())


@pytest.mark.parametrize("fold", [False, True])
def test_model_file_converted_to_weights_gives_the_same_outputs(fold: bool, weights: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "net.safetensors", load_darknet_file(weights, find_cfg_of(weights)))
    (tmp_path / "net.cfg").unlink()  # the model file holds its network
    loaded = load_model(tmp_path / "net.safetensors")
    assert isinstance(loaded.model, DarknetNet)
    model = loaded.model.folded() if fold else loaded.model
    target = tmp_path / "again.weights"
    written = save_darknet_files(model, target, loaded.file.class_names, (64, 96), "letterbox")
    assert written == tuple(tmp_path / f"again.{kind}" for kind in ("weights", "cfg", "names"))
    assert (target.read_bytes() == weights.read_bytes()) is not fold
    assert ("batch_normalize" in written[1].read_text()) is not fold
    again = load_model(target)
    assert (again.config.input.size, again.config.input.fit) == ((64, 96), "letterbox")
    assert again.file.class_names == loaded.file.class_names
    assert isinstance(again.model, DarknetNet)
    with torch.no_grad():
        for ours, theirs in zip(loaded.model.eval()(images()), again.model.eval()(images()), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_model_file_refuses_a_cfg_and_names(weights: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "net.safetensors", load_darknet_file(weights, find_cfg_of(weights)))
    assert load_model_file(tmp_path / "net.safetensors").category_ids == (0, 1, 2)
    with pytest.raises(ConfigError, match=r"--cfg and --names: expected a Darknet \.weights file"):
        load_model(tmp_path / "net.safetensors", cfg="yolov3")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "missing.safetensors")


def test_recipe_of_the_cfg_is_used_if_asked_for() -> None:
    plain = load_detection(str(TINY))
    asked = load_detection(str(TINY), ["model.recipe=true", "train.clip_norm=10"])
    assert type(plain.optimizer) is not type(asked.optimizer)
    assert plain.train.iterations is None
    assert (asked.optimizer.lr, asked.loader.batch_size, asked.train.iterations) == (0.01, 4, 100)
    assert asked.schedule.warmup_iterations == 1  # burn_in=2: the second update has the full rate
    assert asked.train.clip_norm == 10  # an explicit setting has priority
    assert asked.input == plain.input


def test_presets_of_darknet_networks_use_the_common_recipe() -> None:
    for name in ("yolov4-tiny", "yolov4"):
        preset, bare = load_detection(name), load_detection(f"{name}.cfg")
        assert (preset.model, preset.input, preset.loss, preset.predict) == (
            bare.model,
            bare.input,
            bare.loss,
            bare.predict,
        )
        assert preset.optimizer == load_detection("mish-n").optimizer
