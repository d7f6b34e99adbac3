from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detector.config.registry import build, name_of
from detector.media.images import read_image
from detector.models.activations import Mish
from detector.models.blocks import Scale
from detector.models.yolox import FocusStem, Yolox, YoloxHead
from detector.models.yolox_checkpoint import SIZES, config_of_size, load_yolox_file, original_name
from detector.structures.canvas import InputConfig
from detector.structures.selection import SelectConfig, select
from detector.tasks.detection_model import build_model, load_detection

# parameters with 80 classes, entries of the state dict
PUBLISHED = {
    "nano": (912_159, 642), "tiny": (5_055_855, 462), "s": (8_968_255, 462), "m": (25_326_495, 606),
    "l": (54_208_895, 750), "x": (99_071_455, 894),
}  # fmt: skip


def meta_model(size: str, num_classes: int = 80) -> Yolox:
    with torch.device("meta"):
        model = build_model(load_detection(f"yolox-{size}"), num_classes)
    assert isinstance(model, Yolox)
    return model


@pytest.mark.parametrize("size", PUBLISHED)
def test_presets_have_the_published_numbers_of_parameters_and_entries(size):
    model = meta_model(size)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == PUBLISHED[size]


@pytest.mark.parametrize("size", PUBLISHED)
def test_preset_is_the_model_of_the_published_size(size):
    experiment = load_detection(f"yolox-{size}")
    assert experiment.model == config_of_size(size)
    assert experiment.input == InputConfig(SIZES[size][3], arithmetic="yolox")
    assert (experiment.evaluate.best_class, experiment.evaluate.iou) == (True, 0.65)
    assert (experiment.predict.best_class, experiment.predict.iou) == (True, 0.45)


@pytest.mark.parametrize("size", ["nano", "tiny", "s"])
def test_entries_have_the_names_and_shapes_of_the_original_code(yolox_numbers, size):
    stored = np.load(yolox_numbers / f"structure_{size}.npz")
    own = {original_name(name): str(list(t.shape)) for name, t in meta_model(size, 5).state_dict().items()}
    assert own == dict(zip(stored["names"].tolist(), stored["shapes"].tolist(), strict=True))


def test_original_names_are_unique_and_lead_to_the_original_modules():
    for size in ("nano", "s"):
        names = [original_name(name) for name in meta_model(size, 2).state_dict()]
        assert len(set(names)) == len(names)
    nano = {original_name(name): tuple(t.shape) for name, t in meta_model("nano", 5).state_dict().items()}
    stored = {  # a few of the entries of the original code
        "backbone.backbone.stem.conv.conv.weight": (16, 12, 3, 3),
        "backbone.backbone.dark3.1.m.2.conv2.pconv.bn.running_var": (32,),
        "backbone.backbone.dark5.1.conv2.conv.weight": (256, 512, 1, 1),
        "backbone.backbone.dark5.2.conv3.conv.weight": (256, 256, 1, 1),
        "backbone.lateral_conv0.conv.weight": (128, 256, 1, 1),
        "backbone.reduce_conv1.conv.weight": (64, 128, 1, 1),
        "backbone.C3_p4.conv1.conv.weight": (64, 256, 1, 1),
        "backbone.bu_conv2.dconv.conv.weight": (64, 1, 3, 3),
        "backbone.bu_conv1.dconv.conv.weight": (128, 1, 3, 3),
        "backbone.C3_n3.conv3.conv.weight": (128, 128, 1, 1),
        "head.cls_convs.2.1.pconv.conv.weight": (64, 64, 1, 1),
        "head.stems.2.conv.weight": (64, 256, 1, 1),
        "head.obj_preds.1.bias": (1,),
    }
    assert {name: nano[name] for name in stored} == stored


def test_focus_stem_stacks_pixel_phases_row_first():
    stem = FocusStem(1, 8, Mish.Config())
    seen = []
    stem.conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    stem(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert seen[0][0, :, 0, 0].tolist() == [0, 4, 1, 5]  # top-left, bottom-left, top-right, bottom-right


def test_images_become_bgr_in_0_to_255():
    model = Yolox(config_of_size("nano"), 2)
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(model.as_input(images), images.flip(1).float())
    assert torch.allclose(model.as_input(images / 255), images.flip(1).float(), atol=1e-4)
    grey = Yolox(config_of_size("nano"), 2, image_channels=1)
    assert torch.equal(grey.as_input(images[:, :1]), images[:, :1].float())


def test_pixels_of_the_older_release_are_taken_by_a_key():
    model = Yolox(replace(config_of_size("nano"), pixels="imagenet"), 2)
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (images / 255 - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(model.as_input(images), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="expected images of 3 channels, got 1"):
        Yolox(replace(config_of_size("nano"), pixels="imagenet"), 2, image_channels=1)


def test_decoding_equals_a_float64_reference():
    strides, num_classes = (8, 16, 32), 4
    head = build(YoloxHead.Config(), Scale(width=0.125), (8, 8, 8), strides, num_classes)
    raw_maps = tuple(torch.randn(2, 5 + num_classes, 64 // s, 96 // s) for s in strides)
    boxes, scores = head.decode(raw_maps)
    place = 0
    for raw, stride in zip(raw_maps, strides, strict=True):
        for row in range(raw.shape[2]):
            for column in range(raw.shape[3]):
                v = raw[1, :, row, column].double()
                centre = torch.stack([v[0] + column, v[1] + row]) * stride
                half = v[2:4].exp() * stride / 2
                corners = torch.cat([centre - half, centre + half])  # in float32 a corner near 0 keeps few digits
                assert torch.allclose(boxes[1, place].double(), corners, rtol=1e-5, atol=1e-5)
                assert torch.allclose(scores[1, place].double(), v[4].sigmoid() * v[5:].sigmoid(), rtol=1e-5)
                place += 1
    assert place == boxes.shape[1]


def test_class_and_objectness_start_at_the_prior():
    head = Yolox(config_of_size("nano"), 3).head
    for conv in (*head.class_predictions, *head.objectness_predictions):
        assert isinstance(conv, torch.nn.Conv2d)
        assert conv.bias is not None
        assert torch.allclose(conv.bias.sigmoid(), torch.tensor(0.01))


def test_mish_variant_trains():
    config = load_detection("yolox-nano", ["model.activation=mish", "input.size=64"])
    model = build_model(config, 3)
    loss = F.softplus(torch.stack([m.mean() for m in model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))])).sum()
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "head" in n and "stems" in n)


def decoded_rows(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Rows cx, cy, w, h, objectness, classes of images in BGR and 0..255, computed in the dtype of the model."""
    with torch.no_grad():
        raw_maps = model.head(model.neck(model.backbone(images)))
    flat = torch.cat([m.flatten(2).transpose(1, 2) for m in raw_maps], dim=1)
    cells = model.head.cells(raw_maps)
    strides = cells.strides[:, None]
    centre, size = (flat[..., :2] + cells.corners_xy) * strides, flat[..., 2:4].exp() * strides
    return torch.cat([centre, size, flat[..., 4:].sigmoid()], dim=-1)


def test_outputs_of_random_weights_equal_those_of_the_original_code(yolox_numbers):
    stored = np.load(yolox_numbers / "structure_nano.npz")
    model = Yolox(config_of_size("nano"), 5).eval()
    model.load_state_dict(load_yolox_file(yolox_numbers / "random_nano_5classes.pth").state)
    difference = (decoded_rows(model, torch.from_numpy(stored["image"])) - torch.from_numpy(stored["decoded"])).abs()
    assert float(difference[..., :4].max()) < 1e-3
    assert float(difference[..., 4:].max()) < 1e-5


@pytest.mark.parametrize("photo", ["dog", "horses", "person"])
def test_outputs_on_photos_equal_those_of_the_original_code(yolox_numbers, data_folder, photo):
    """In float64, because float32 outputs of these weights differ by up to 0.02 px between kernels of one machine.

    What remains is the float32 rounding of the stored numbers themselves.
    """
    stored = np.load(yolox_numbers / f"nano_{photo}.npz")
    model = Yolox(config_of_size("nano"), 80).eval()
    model.load_state_dict(load_yolox_file(data_folder / "yolox" / "yolox_nano.pth").state)
    image = read_image(data_folder / "photos" / f"{photo}.jpg")
    letterbox = InputConfig(416, arithmetic="yolox").letterbox(image)
    assert letterbox.scale_hw == (stored["ratio"], stored["ratio"])
    canvas = torch.from_numpy(letterbox.apply(image)).permute(2, 0, 1)[None]
    difference = (decoded_rows(model.double(), canvas.flip(1).double())[0] - torch.from_numpy(stored["decoded"])).abs()
    assert float(difference[:, :4].max()) < 5e-3
    assert float(difference[:, 4:].max()) < 2e-5
    with torch.no_grad():
        boxes, scores = model.float().decode(model(canvas))
    selection = SelectConfig(0.25, 0.45, best_class=True)
    boxes, scores, labels = select(letterbox.boxes_to_source(boxes[0]), scores[0], selection)
    wanted = torch.from_numpy(stored["detections"])
    assert labels.tolist() == wanted[:, 6].int().tolist()
    assert torch.allclose(boxes, wanted[:, :4], atol=0.05)
    assert torch.allclose(scores, wanted[:, 4] * wanted[:, 5], atol=1e-4)


def test_recipe_of_yolox_takes_the_place_of_the_own_one():
    experiment = load_detection("yolox-s", ["recipe=yolox", "optimizer.lr=0.02"])
    assert (name_of(experiment.optimizer), experiment.optimizer.lr) == ("sgd", 0.02)
    assert (experiment.schedule.final, experiment.schedule.warmup_power) == (0.05, 2.0)
    assert (experiment.augment.closing_share, experiment.loss.l1_share) == (0.05, 0.05)
    assert experiment.model == load_detection("yolox-s").model
