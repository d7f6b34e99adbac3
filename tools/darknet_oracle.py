"""Comparison of this package's Darknet networks with OpenCV's reader of Darknet files.

    python -m venv /tmp/opencv4
    /tmp/opencv4/bin/pip install "opencv-python-headless==4.14.*" numpy
    python tools/darknet_oracle.py --opencv /tmp/opencv4/bin/python --photo street.jpg yolov4-tiny yolov4

OpenCV 5 has no such reader, so OpenCV 4 is installed in a virtual environment of its own and runs as a process of its
own. Each network gets seeded random weights of realistic statistics, unless a trained model is given (.safetensors or
.weights). Its batch norms are folded for the comparison, because OpenCV uses another epsilon. `--golden FOLDER` writes
the numbers that the test suite compares with.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SHIPPED = (
    *("yolov3-tiny", "yolov3", "yolov4-tiny", "yolov4", "yolov4-csp", "yolov4x-mish", "yolov4-p5", "yolov4-p6"),
    *("yolov7-tiny", "yolov7"),
)
FITS = ("stretch", "letterbox")
SMALL_HW = (128, 192)  # canvas of the golden numbers
STATISTICS_HW = (384, 384)  # canvas of the statistics of the weights when the canvas is that of the .cfg
NUM_CANDIDATES = 100  # boxes before suppression, the best ones
NMS_IOU = 0.45
NUM_SAMPLES = 400  # golden values of each raw map


# --- in the environment of OpenCV 4 ------------------------------------------------------------------------------


def run_opencv(folder: Path) -> None:
    """Run net.cfg and net.weights on each input in a folder; write raw maps, boxes and the boxes that NMS keeps.

    The results are raw_i (cells, channels) and decoded_i (cells * anchors, 5 + classes) of head i, and `kept`: rows of
    label, score, x, y, width, height in parts of the canvas.
    """
    import cv2

    net = cv2.dnn.readNetFromDarknet(  # type: ignore[attr-defined]  # of OpenCV 4 only
        str(folder / "net.cfg"), str(folder / "net.weights")
    )
    net.enableWinograd(False)  # a faster convolution that loses a digit
    heads = [name for name in net.getLayerNames() if name.startswith("yolo_")]
    wanted = [name.replace("yolo", "permute") for name in heads] + heads
    for path in sorted(folder.glob("*.input.npz")):
        given = np.load(path)
        net.setInput(given["blob"])
        found = net.forward(wanted)
        results = {f"raw_{i}": raw.reshape(-1, raw.shape[-1]) for i, raw in enumerate(found[: len(heads)])}
        decoded = [rows.reshape(-1, rows.shape[-1]) for rows in found[len(heads) :]]
        results |= {f"decoded_{i}": rows for i, rows in enumerate(decoded)}
        rows = np.concatenate(decoded)
        corner = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], axis=1).astype(np.float64)
        kept: list[list[float]] = []
        for label in range(rows.shape[1] - 5):
            scores = rows[:, 5 + label]
            passing = np.flatnonzero(scores > float(given["confidence"]))
            indices = cv2.dnn.NMSBoxes(corner[passing].tolist(), scores[passing].tolist(), 0.0, NMS_IOU)
            kept += [[label, scores[i], *corner[i]] for i in passing[np.asarray(indices, int).ravel()]]
        results["kept"] = np.array(kept, np.float64).reshape(-1, 6)
        np.savez(path.with_name(path.name.replace(".input.", ".output.")), **results)


# --- in the environment of this package --------------------------------------------------------------------------


def synthetic_photo(image_hw: tuple[int, int] = (150, 110), seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return a picture of smooth colours and edges, uint8 (H, W, 3), the same on every machine."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    picture = np.zeros((*image_hw, 3))
    for _ in range(12):
        fx, fy, phase = random.uniform((-0.15, -0.15, 0), (0.15, 0.15, 6.28))
        picture += (
            random.uniform(0, 1, 3)
            * np.where(random.random() < 0.5, 1.0, x > y)[..., None]
            * (np.sin(fx * x + fy * y + phase)[..., None])
        )
    levels: npt.NDArray[np.uint8] = (255 * (picture - picture.min()) / np.ptp(picture)).round().astype(np.uint8)
    return levels


def canvas_of(photo: npt.NDArray[np.uint8], canvas_hw: tuple[int, int], fit: str) -> npt.NDArray[np.float32]:
    """Return a photo as the network's input, float32 (1, 3, H, W) in 0..1, by Darknet's arithmetic."""
    from detector.structures.letterbox import Letterbox

    image_hw = (photo.shape[0], photo.shape[1])
    canvas = Letterbox.fit(image_hw, canvas_hw, fit, arithmetic="darknet").apply(photo)
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None].astype(np.float32))


def realistic_network(
    name: str, photo: npt.NDArray[np.uint8], canvas_hw: tuple[int, int] = SMALL_HW, seed: int = 0
) -> Any:
    """Return a `DarknetNet` in evaluation mode with random weights and activations of the size of a trained network.

    Batch norms get the statistics of a photo, computed in float64, so that they are the same on every machine. Raw
    values are spread about 0, objectness and class scores about a low probability.
    """
    import torch

    from detector.darknet.darknet_model_file import num_classes_of
    from detector.darknet.layers import DarknetConv
    from detector.darknet.network import CfgText, DarknetNet
    from detector.darknet.network_builder import class_rows

    text = CfgText.of_file(name)
    net = DarknetNet(DarknetNet.Config(text), num_classes_of(text.parsed()))
    random = np.random.default_rng(seed)

    def normal(shape: Any, scale: float) -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(tuple(shape), np.float32) * np.float32(scale))

    def unit_variance(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        deviation = output.std()
        module.weight.data /= deviation
        return output / deviation

    heads = class_rows(net.cfg)
    hooks = []
    for index, layer in enumerate(net.layers):
        if not isinstance(layer, DarknetConv):
            continue
        layer.conv.weight.data = normal(layer.conv.weight.shape, (2 / layer.conv.weight[0].numel()) ** 0.5)
        if isinstance(layer.norm, torch.nn.BatchNorm2d):
            layer.norm.weight.data = 1 + normal(layer.norm.weight.shape, 0.2)
            # Most values pass a rectifier; otherwise rounding errors would grow from layer to layer.
            layer.norm.bias.data = 1 + normal(layer.norm.bias.shape, 0.2)
            layer.norm.momentum = 1.0
        elif layer.conv.bias is not None:
            hooks.append(layer.conv.register_forward_hook(unit_variance))
            layer.conv.bias.data = normal(layer.conv.bias.shape, 0.3)
            if index in heads:
                entries = layer.conv.bias.data.view(heads[index].num_groups, -1)
                entries[:, heads[index].num_before - 1 :] -= 2.0
    with torch.no_grad():
        canvases = np.concatenate([canvas_of(photo, canvas_hw, fit) for fit in FITS])
        net.double().train()(torch.from_numpy(canvases).double())
    for hook in hooks:
        hook.remove()
    net.seen.zero_()
    return net.float().eval()


@dataclasses.dataclass(frozen=True)
class Compared:
    """Differences of the two programs on one input; those of raw maps and boxes are relative to their scale."""

    raw: float
    decoded: float
    num_boxes: tuple[int, int]
    min_iou: float
    score: float

    @property
    def agrees(self) -> bool:
        """True if the differences are within the bounds."""
        close = max(self.raw, self.decoded) <= 1e-4 and self.score <= 1e-3
        return close and self.num_boxes[0] == self.num_boxes[1] > 0 and self.min_iou > 0.99


def ours_on(net: Any, blob: Array) -> tuple[list[Array], Array, Array]:
    """Return raw maps (cells, channels), boxes (centre and size in parts of the canvas) and scores."""
    import torch

    from detector.structures.boxes import xyxy_to_cxcywh

    with torch.no_grad():
        raw_maps = net(torch.from_numpy(blob))
        canvas_xyxy, scores = net.decode(raw_maps)
    height, width = blob.shape[2:]
    raw = [m[0].permute(1, 2, 0).reshape(-1, m.shape[1]).numpy() for m in raw_maps]
    return raw, xyxy_to_cxcywh(canvas_xyxy[0].numpy()) / np.array([width, height] * 2), scores[0].numpy()


def kept_by_us(boxes_cxcywh: Array, scores: Array, confidence: float) -> Array:
    """Return rows of label, score, x, y, width, height in the format of OpenCV's side."""
    import torch

    from detector.structures.boxes import cxcywh_to_xyxy, xyxy_to_xywh
    from detector.structures.selection import SelectConfig, select

    config = SelectConfig(confidence, NMS_IOU, max_detections=100_000)
    canvas_xyxy = cxcywh_to_xyxy(boxes_cxcywh).astype(np.float32)
    boxes, kept, labels = select(torch.from_numpy(canvas_xyxy), torch.from_numpy(scores), config)
    return np.column_stack([labels.numpy(), kept.numpy(), xyxy_to_xywh(boxes.numpy())]).astype(np.float64)


def same_boxes(ours: Array, theirs: Array) -> tuple[float, float]:
    """Return the least IoU and the largest score difference of boxes paired by label and overlap."""
    import torch
    from torchvision.ops import box_iou

    from detector.structures.boxes import xywh_to_xyxy

    least, largest = 1.0, 0.0
    for label in np.unique(np.concatenate([ours[:, 0], theirs[:, 0]])):
        a, b = ours[ours[:, 0] == label], theirs[theirs[:, 0] == label]
        if len(a) != len(b):
            return 0.0, 1.0
        overlaps = box_iou(*(torch.from_numpy(xywh_to_xyxy(rows[:, 2:])) for rows in (a, b))).numpy()
        partner = overlaps.argmax(axis=1)
        least = min(least, float(overlaps[np.arange(len(a)), partner].min()))
        largest = max(largest, float(np.abs(a[:, 1] - b[partner, 1]).max()))
    return least, largest


def relative(ours: Array, theirs: Array) -> float:
    """Return the largest difference relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def write_case(folder: Path, net: Any, canvas_hw: tuple[int, int]) -> None:
    """Write the folded network for OpenCV, at the size of the input and with a low score threshold."""
    from detector.darknet.cfg_file import dump_cfg

    folded = net.folded()
    changed = dataclasses.replace(folded.cfg.net, height=canvas_hw[0], width=canvas_hw[1])
    text = dump_cfg(dataclasses.replace(folded.cfg, net=changed))
    (folder / "net.cfg").write_text(text.replace("[yolo]\n", "[yolo]\nthresh=0.0001\n"), encoding="ascii")
    folded.save_weights(folder / "net.weights")


def compare(
    name: str, photo: npt.NDArray[np.uint8], opencv: Path, canvas_hw: tuple[int, int] | None
) -> Iterator[tuple[str, Compared, dict[str, Array]]]:
    """Yield the comparison of both programs for each fit of a photo, with OpenCV's results."""
    if name.endswith((".safetensors", ".weights")):
        from detector.errors import ConfigError
        from detector.models.contracts import DetectionModel
        from detector.tasks.detection_model import load_model

        loaded = load_model(Path(name))
        if not isinstance(loaded.model, DetectionModel):
            raise ConfigError(f"{name}: expected a model, got an export; give the model that it was made from")
        net: Any = loaded.model.eval()
        size = canvas_hw or loaded.config.input.canvas_hw
    else:
        net = realistic_network(name, photo, canvas_hw or STATISTICS_HW)
        size = canvas_hw or (net.cfg.net.height, net.cfg.net.width)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_case(folder, net, size)
        ours = {}
        for fit in FITS:
            blob = canvas_of(photo, size, fit)
            ours[fit] = ours_on(net, blob)
            best = np.sort(ours[fit][2].ravel())[-NUM_CANDIDATES - 1 :][:2]
            confidence = float(best.mean())  # halfway between two scores, so that both sides keep the same boxes
            np.savez(folder / f"{fit}.input.npz", blob=blob, confidence=confidence)
        subprocess.run([str(opencv), __file__, "--run-opencv", str(folder)], check=True)
        for fit in FITS:
            raw, boxes, scores = ours[fit]
            theirs = dict(np.load(folder / f"{fit}.output.npz"))
            theirs["confidence"] = np.load(folder / f"{fit}.input.npz")["confidence"]
            rows = np.concatenate([theirs[f"decoded_{i}"] for i in range(len(raw))])
            kept = kept_by_us(boxes, scores, float(theirs["confidence"]))
            yield (
                fit,
                Compared(
                    max(relative(a, theirs[f"raw_{i}"]) for i, a in enumerate(raw)),
                    max(relative(boxes, rows[:, :4]), relative(np.where(rows[:, 5:] > 0, scores, 0), rows[:, 5:])),
                    (len(kept), len(theirs["kept"])),
                    *same_boxes(kept, theirs["kept"]),
                ),
                theirs,
            )


def sampled(num_values: int) -> npt.NDArray[np.int64]:
    """Return the indices of the values of a raw map that golden files keep."""
    return np.random.default_rng(num_values).integers(0, num_values, NUM_SAMPLES)


def golden(found: dict[str, dict[str, Array]]) -> dict[str, Array]:
    """Return the content of a golden file: some values of each raw map and the boxes that NMS keeps, by OpenCV."""
    numbers: dict[str, Array] = {}
    for fit, theirs in found.items():
        for name, values in theirs.items():
            if name.startswith("raw_"):
                numbers[f"{fit}_{name}"] = values.ravel()[sampled(values.size)].astype(np.float32)
        numbers[f"{fit}_kept"] = theirs["kept"].astype(np.float32)
        numbers[f"{fit}_confidence"] = theirs["confidence"]
    return numbers


def main() -> int:
    """Compare the networks; return 1 if one of them disagrees, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="*", help=f".cfg files, shipped names or models (default: {' '.join(SHIPPED)})"
    )
    parser.add_argument("--opencv", type=Path, help="Python of an environment with OpenCV 4")
    parser.add_argument("--photo", type=Path, help="a photo (default: a synthetic picture)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="canvas (default: that of each .cfg)")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="write golden numbers, at a small size")
    parser.add_argument("--run-opencv", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_opencv:
        run_opencv(arguments.run_opencv)
        return 0
    photo = synthetic_photo()
    if arguments.photo:
        from detector.media.images import read_image

        photo = read_image(arguments.photo)
    size = SMALL_HW if arguments.golden else tuple(arguments.size) if arguments.size else None
    failed = False
    for name in arguments.networks or SHIPPED:
        found = {}
        for fit, compared, theirs in compare(name, photo, arguments.opencv, size):
            found[fit] = theirs
            failed |= not compared.agrees
            print(json.dumps({"network": name, "fit": fit, "agrees": compared.agrees, **dataclasses.asdict(compared)}))
        if arguments.golden:
            np.savez_compressed(arguments.golden / f"{name}.npz", allow_pickle=False, **golden(found))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
