from __future__ import annotations

import io
import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detector.errors import ConfigError, MediaError
from detector.inference.predictor import Prediction, Predictor, only_detections
from detector.inference.runtime import TorchRuntime
from detector.media.sources import ImageSource, as_sources, require_images
from detector.models.heads import DecoupledHead
from detector.models.yolo import Yolo
from detector.structures.canvas import InputConfig
from detector.structures.letterbox import Letterbox
from detector.structures.selection import SelectConfig
from detector.structures.types import Detections
from detector.tasks.detection_config import DetectionConfig

EVERYTHING = SelectConfig(confidence=0.0, max_detections=40)
SIZES_HW = ((64, 64), (90, 41), (30, 200), (1, 1), (64, 96), (500, 3), (77, 77), (120, 64), (10, 12), (65, 63))


def last_of(branch: nn.Module) -> nn.Conv2d:
    """Return the last convolution of a branch of the head."""
    assert isinstance(branch, nn.Sequential)
    last = branch[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def network(channels: int = 3, num_classes: int = 3) -> Yolo:
    """Return a small network with random weights whose outputs depend on the image and differ between cells."""
    torch.manual_seed(0)
    model = Yolo(Yolo.Config(width=0.125), num_classes, channels)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0  # one batch is enough to keep the signal alive
    with torch.no_grad():
        model.train()(torch.randint(0, 256, (4, channels, 64, 64), dtype=torch.uint8))
        assert isinstance(model.head, DecoupledHead)
        for box_branch, class_branch in zip(model.head.box_branches, model.head.class_branches, strict=True):
            last_of(box_branch).weight.mul_(2)
            last = last_of(class_branch)
            last.weight.mul_(2)
            assert last.bias is not None
            last.bias.zero_()
    return model


def predictor(batch_size: int, channels: int = 3, size: int | tuple[int, int] = 64) -> Predictor:
    config = InputConfig(size, channels)
    names, ids = ("a", "b", "c"), (3, 7, 90)
    return Predictor(TorchRuntime(network(channels), torch.device("cpu")), config, names, ids, batch_size=batch_size)


def picture(index: int, channels: int = 3) -> np.ndarray:
    height, width = SIZES_HW[index % len(SIZES_HW)]
    coarse = np.random.default_rng(index).integers(0, 256, (4, 4, channels), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return np.ascontiguousarray(coarse[rows][:, columns])


def sources(indices: list[int], channels: int = 3) -> list[ImageSource]:
    return [ImageSource(str(i), pixels=picture(i, channels)) for i in indices]


def bits(found: Detections) -> tuple[object, ...]:
    return (*(t.numpy().tobytes() for t in (found.source_xyxy, found.scores, found.labels)), found.image_hw)


def answers(made: Predictor, given: list[ImageSource]) -> dict[str, tuple[object, ...]]:
    return {p.source.name: bits(only_detections(p)) for p in made.stream(given, EVERYTHING)}


def test_detections_do_not_depend_on_the_other_images_in_the_batch() -> None:
    made = predictor(batch_size=4)
    expected = answers(made, sources(list(range(10))))  # two full batches and one filled up
    assert len(set(expected.values())) == 10  # they do depend on the image
    for seed in range(3):
        order = list(range(10))
        random.Random(seed).shuffle(order)
        assert answers(made, sources(order)) == expected
    for index in range(10):
        assert answers(made, sources([index])) == {str(index): expected[str(index)]}
        assert answers(made, sources([index] * 3 + [(index + 1) % 10]))[str(index)] == expected[str(index)]


def test_detect_and_stream_agree() -> None:
    made = predictor(batch_size=4)
    images = [picture(i) for i in range(3)]
    streamed = [only_detections(p) for p in made.stream(sources([0, 1, 2]), EVERYTHING)]
    assert [bits(d) for d in made.detect(images, EVERYTHING)] == [bits(d) for d in streamed]


@pytest.mark.parametrize("num_images", [0, 3])
def test_no_images_or_more_than_a_batch_are_refused(num_images: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 2 images, got {num_images}"):
        predictor(batch_size=2).detect([picture(i) for i in range(num_images)], EVERYTHING)


@pytest.mark.parametrize("size", [64, (32, 96)])
def test_boxes_lie_inside_the_image(size: int | tuple[int, int]) -> None:
    made = predictor(batch_size=4, size=size)
    touching = 0
    for prediction in made.stream(sources(list(range(10))), EVERYTHING):
        found = only_detections(prediction)
        height, width = SIZES_HW[int(prediction.source.name)]
        assert found.image_hw == (height, width)
        assert 0 < len(found) <= 40
        x1, y1, x2, y2 = found.source_xyxy.unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= width).all()
        assert (y2 <= height).all()
        assert (x2 >= x1).all()
        assert (y2 >= y1).all()
        assert (found.scores.diff() <= 0).all()
        touching += int((x2 == width).sum() + (y2 == height).sum())
    assert touching > 0  # some had to be cut


def test_detections_are_ordinary_tensors() -> None:
    (found,) = predictor(batch_size=1).detect([picture(0)], EVERYTHING)
    for tensor in (found.source_xyxy, found.scores, found.labels):
        assert not tensor.is_inference()
        tensor += 1
    assert (found.source_xyxy.dtype, found.scores.dtype, found.labels.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_every_source_gives_one_record_in_order(batch_size: int, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    broken = [ImageSource(n, tmp_path / n) for n in ("none.jpg", "text.jpg", "empty.png", "folder.jpg")]
    wrong = ImageSource("five", pixels=picture(0, channels=5))
    good = sources(list(range(5)))
    mixed = [broken[0], good[0], good[1], broken[1], broken[2], good[2], good[3], wrong, good[4], broken[3]]
    made = predictor(batch_size)
    records = list(made.stream(mixed, EVERYTHING))
    assert [record.source for record in records] == mixed
    reasons = (
        "no such file",
        "not an image (text)",
        "empty (0 bytes)",
        "it is a folder",
        "expected an image of 3 channels",
    )
    for record, reason in zip([r for r in records if r.error], [*reasons[:3], reasons[4], reasons[3]], strict=True):
        assert record.detections is None
        assert record.image is None
        assert record.error is not None
        assert reason in record.error
        with pytest.raises(MediaError) as caught:
            only_detections(record)
        assert str(caught.value) == record.error
    for record in records:
        if record.source.name.isdecimal():
            assert record.image is not None
            np.testing.assert_array_equal(record.image, picture(int(record.source.name)))
    alone = answers(made, good)
    assert {r.source.name: bits(r.detections) for r in records if r.detections} == alone


def test_sources_that_all_fail_give_records(tmp_path: Path) -> None:
    records = list(predictor(2).stream([ImageSource(str(i), tmp_path / str(i)) for i in range(30)], EVERYTHING))
    assert [record.source.name for record in records] == [str(i) for i in range(30)]
    assert all(record.detections is None and record.error for record in records)
    assert list(predictor(2).stream([], EVERYTHING)) == []


def test_stream_reads_only_a_few_images_ahead() -> None:
    asked: list[int] = []

    def endless() -> Iterator[ImageSource]:
        while True:
            asked.append(len(asked))
            yield ImageSource(str(asked[-1]), pixels=picture(asked[-1]))

    stream = predictor(2).stream(endless(), EVERYTHING)
    assert [next(stream).source.name for _ in range(3)] == ["0", "1", "2"]
    assert len(asked) < 20
    assert isinstance(stream, Generator)
    stream.close()


def test_grey_model_reads_grey_and_colour_files(tmp_path: Path) -> None:
    made = predictor(batch_size=2, channels=1)
    Image.fromarray(picture(1, channels=1)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(picture(1)).save(tmp_path / "colour.png")
    records = list(made.stream(require_images(as_sources(tmp_path)[0], "a test"), EVERYTHING))
    assert [r.image.shape for r in records if r.image is not None] == [(90, 41, 1), (90, 41, 1)]
    (from_pixels,) = made.detect([picture(1, channels=1)], EVERYTHING)
    assert bits(only_detections(records[1])) == bits(from_pixels)
    assert bits(only_detections(records[0])) != bits(from_pixels)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_rotated_photograph_is_predicted_upright(orientation: int, turns: int, tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    plain, turned = io.BytesIO(), tmp_path / "turned.jpg"
    Image.fromarray(picture(1)).save(plain, "JPEG", quality=95)
    Image.fromarray(picture(1)).save(turned, "JPEG", quality=95, exif=tags.tobytes())
    upright = np.ascontiguousarray(np.rot90(np.asarray(Image.open(plain)), turns))
    made = predictor(batch_size=1)
    (record,) = made.stream([ImageSource("turned", turned)], EVERYTHING)
    found = only_detections(record)
    assert found.image_hw == upright.shape[:2] == ((41, 90) if turns % 2 else (90, 41))
    assert record.image is not None
    np.testing.assert_array_equal(record.image, upright)
    assert bits(found) == bits(made.detect([upright], EVERYTHING)[0])


def test_model_with_nan_outputs_detects_nothing() -> None:
    made = predictor(batch_size=1)
    assert isinstance(made.runtime, TorchRuntime)
    with torch.no_grad():
        next(made.runtime.model.parameters()).fill_(float("nan"))
    (found,) = made.detect([picture(0)], EVERYTHING)
    assert len(found) == 0


def test_input_size_that_does_not_suit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Yolo: expected images with both sides a multiple of 32, got \(64, 80\)"):
        predictor(batch_size=1, size=(64, 80))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": (64, -1)}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"fit": "crop"}, "expected input.fit to be letterbox or stretch, got 'crop'"),
    ],
)
def test_impossible_input_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputConfig(**settings)  # type: ignore[arg-type]  # on purpose


def test_record_without_detections_and_error_is_an_error() -> None:
    with pytest.raises(MediaError, match="7: no image"):
        only_detections(Prediction(ImageSource("7"), None))


# --- Darknet's arithmetic ------------------------------------------------------------------------------------------


class Seeing(Yolo):
    """Network that keeps its input images."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen = images.clone()
        return super().forward(images)


@pytest.mark.parametrize("fit", ["letterbox", "stretch"])
def test_darknet_arithmetic_gives_the_network_floats(fit: str) -> None:
    model = Seeing(Yolo.Config(width=0.125), 3)
    config = InputConfig(64, fit=fit, arithmetic="darknet")
    made = Predictor(TorchRuntime(model, torch.device("cpu")), config, "abc", (1, 2, 3), batch_size=2)
    made.detect([picture(1)], EVERYTHING)
    assert isinstance(made.runtime, TorchRuntime)
    seen = made.runtime.model.seen
    assert isinstance(seen, torch.Tensor)
    wanted = Letterbox.fit((90, 41), (64, 64), fit, arithmetic="darknet").apply(picture(1))
    assert seen.dtype == torch.float32
    np.testing.assert_array_equal(seen[0].permute(1, 2, 0).numpy(), wanted)
    assert 0.9 < float(seen[0].max()) <= 1


def test_floats_in_unit_range_and_their_bytes_give_the_same_maps() -> None:
    model = network().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, theirs in zip(model(images), model(images.float() / 255), strict=True):
            assert torch.equal(ours, theirs)
        assert model.in_unit_range(images).max() == 1


def test_evaluation_uses_the_arithmetic_of_the_experiment(experiment: Callable[..., DetectionConfig]) -> None:
    config = experiment("input.arithmetic=darknet", "input.fit=stretch")
    assert config.input == InputConfig(64, 3, "stretch", "darknet")
    with pytest.raises(ConfigError, match=r"expected input.arithmetic to be opencv or darknet or yolox, got 'caffe'"):
        experiment("input.arithmetic=caffe")


def test_notebook_shows_the_image_with_its_detections() -> None:
    image = picture(0)
    found = Detections(
        torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([0.9]), torch.tensor([1]), (64, 64), ("a", "b"), (1, 2)
    )
    shown = Prediction(ImageSource("x", pixels=image), found, image=image)._repr_png_()
    assert shown is not None
    assert shown.startswith(b"\x89PNG")
    pixels = np.asarray(Image.open(io.BytesIO(shown)))
    assert pixels.shape == image.shape
    assert not np.array_equal(pixels, image)
    assert np.array_equal(pixels[50:, 50:], image[50:, 50:])  # in RGB, away from the box
    assert Prediction(ImageSource("x"), None, "cannot be read")._repr_png_() is None
