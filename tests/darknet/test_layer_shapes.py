"""Shapes of layers: equal to those of Darknet, and networks that are too large are refused before they take memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from detector.darknet.cfg_file import parse_cfg
from detector.darknet.layer_shapes import infer_shapes, num_parameters
from detector.errors import DarknetError

CONV8 = "[convolutional]\nfilters=8\nsize=3\npad=1\n"


def network(layers: str, width: int = 24, height: int = 20, channels: int = 3):
    return parse_cfg(f"[net]\nwidth={width}\nheight={height}\nchannels={channels}\n{layers}", "n.cfg")


def outputs(layers: str, **net: int) -> list[tuple[int, int, int]]:
    return [shape.output_chw for shape in infer_shapes(network(layers, **net))]


def mistakes(layers: str, **net: int) -> list[str]:
    with pytest.raises(DarknetError) as caught:
        infer_shapes(network(layers, **net))
    return str(caught.value).splitlines()


# Second layers on a map of 8 x 20 x 24, and the sizes that Darknet computed.
FROM_DARKNET = [
    ("[convolutional]\nfilters=6\nsize=1\nstride=2\n", (6, 10, 12)),
    ("[convolutional]\nfilters=6\nsize=2\nstride=2\npad=1\n", (6, 11, 13)),
    ("[convolutional]\nfilters=6\nsize=3\n", (6, 18, 22)),
    ("[convolutional]\nfilters=6\nsize=3\npad=2\npadding=5\n", (6, 20, 24)),
    ("[convolutional]\nfilters=6\nsize=3\npadding=2\n", (6, 22, 26)),
    ("[convolutional]\nfilters=6\nsize=3\nstride=2\nstride_x=1\npad=1\n", (6, 10, 24)),
    ("[convolutional]\nfilters=6\nsize=3\npad=1\ndilation=2\n", (6, 20, 24)),
    ("[convolutional]\nfilters=12\nsize=3\npad=1\ngroups=4\n", (12, 20, 24)),
    ("[convolutional]\nfilters=6\nsize=3\nstride=2\npad=1\nantialiasing=1\n", (6, 10, 12)),
    ("[maxpool]\nsize=3\nstride=2\npadding=0\n", (8, 9, 11)),
    ("[maxpool]\nsize=3\nstride=2\npadding=1\n", (8, 10, 12)),
    ("[maxpool]\nsize=3\nstride=2\npadding=4\n", (8, 11, 13)),
    ("[maxpool]\nsize=2\nstride=1\n", (8, 20, 24)),
    ("[maxpool]\nsize=5\nstride=1\n", (8, 20, 24)),
    ("[maxpool]\nsize=4\nstride=2\n", (8, 10, 12)),
    ("[maxpool]\nsize=4\nstride=4\n", (8, 5, 6)),
    ("[maxpool]\nstride=3\n", (8, 7, 8)),
    ("[maxpool]\nsize=3\nstride=2\nstride_x=1\n", (8, 10, 24)),
    ("[upsample]\nstride=3\n", (8, 60, 72)),
    ("[upsample]\nstride=-2\n", (8, 10, 12)),
    ("[reorg3d]\nstride=2\n", (32, 10, 12)),
    ("[avgpool]\n", (8, 1, 1)),
]


@pytest.mark.parametrize(("layer", "expected"), FROM_DARKNET)
def test_layer_has_the_size_that_darknet_computed(layer, expected):
    assert outputs(CONV8 + layer)[1] == expected


def test_pooling_an_odd_side_rounds_up():
    assert outputs("[maxpool]\nsize=2\nstride=2\n", width=65, height=64) == [(3, 32, 33)]


def test_every_layer_file_has_the_shapes_that_darknet_computed(darknet_numbers: Path):
    files = sorted(darknet_numbers.glob("layer_*.npz"))
    assert len(files) > 40
    for file in files:
        golden = np.load(file)
        cfg = parse_cfg(str(golden["cfg"]), file.name)
        shapes = infer_shapes(cfg)
        assert [s.output_chw for s in shapes] == [golden[f"out{i}"].shape for i in range(len(shapes))], file.name
        assert num_parameters(cfg) * 4 + 20 == golden["weights"].size, file.name


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (CONV8 * 2 + "[route]\nlayers=-1,0\n", (16, 20, 24)),
        (CONV8 * 2 + "[route]\nlayers=0,1\ngroups=2\ngroup_id=1\n", (8, 20, 24)),
        (CONV8 + "[convolutional]\nfilters=5\nsize=1\n[shortcut]\nfrom=-2\n", (5, 20, 24)),  # unequal channels
        (CONV8 + "[avgpool]\n[scale_channels]\nfrom=0\n", (8, 20, 24)),
        (CONV8 + "[convolutional]\n[scale_channels]\nfrom=0\nscale_wh=1\n", (8, 20, 24)),
        (CONV8 * 2 + "[sam]\nfrom=0\n", (8, 20, 24)),
        (CONV8 + "[dropout]\n", (8, 20, 24)),
        (CONV8 + "[reorg]\nstride=2\n", (32, 10, 12)),
        (CONV8 + "[connected]\noutput=7\n", (7, 1, 1)),
        ("[convolutional]\nfilters=18\n[yolo]\nnum=4\nmask=0,1,3\nclasses=1\nanchors=1,1,1,1,1,1,1,1\n", (18, 20, 24)),
        ("[convolutional]\nfilters=10\n[Gaussian_yolo]\nclasses=1\nanchors=1,1\n", (10, 20, 24)),
        ("[convolutional]\nfilters=14\n[region]\nnum=2\nclasses=2\nanchors=1,1,2,2\n", (14, 20, 24)),
    ],
)
def test_layer_takes_its_shape_from_its_sources(layers, expected):
    assert outputs(layers)[-1] == expected


def test_input_size_can_be_overridden():
    cfg = network(CONV8 + "[maxpool]\nstride=2\n")
    assert infer_shapes(cfg, (100, 64))[-1].output_chw == (8, 50, 32)
    assert infer_shapes(cfg, (100, 64))[1].input_chw == (8, 100, 64)


def test_arrays_are_in_the_order_of_the_file():
    layers = (
        "[convolutional]\nfilters=8\nsize=3\npad=1\ngroups=1\nbatch_normalize=1\n"
        "[convolutional]\nfilters=8\nsize=3\npad=1\ngroups=4\n"
        "[convolutional]\nfilters=8\nsize=3\npad=1\ngroups=4\nshare_index=-1\n"
        "[shortcut]\nfrom=0,1\nweights_type=per_feature\nweights_normalization=relu\n"
        "[shortcut]\nfrom=0\nweights_type=per_channel\n"
        "[connected]\noutput=2\nbatch_normalize=1\n"
    )
    arrays = [shape.arrays for shape in infer_shapes(network(layers))]
    norm = {"scales": (8,), "rolling_mean": (8,), "rolling_variance": (8,)}
    assert list(arrays[0].items()) == list({"biases": (8,), **norm, "weights": (8, 3, 3, 3)}.items())
    assert list(arrays[1].items()) == [("biases", (8,)), ("weights", (8, 2, 3, 3))]
    assert arrays[2] == {}
    assert arrays[3] == {"weights": (3,)}
    assert arrays[4] == {"weights": (2, 8)}
    assert list(arrays[5]) == ["biases", "weights", "scales", "rolling_mean", "rolling_variance"]
    assert arrays[5]["weights"] == (2, 8 * 20 * 24)


# --- refused networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "line", "expected"),
    [
        (
            CONV8 + "[convolutional]\nsize=3\ndilation=2\n",
            9,
            "dilation=2: expected a padding of (size - 1) / 2, got size=3",
        ),
        (CONV8 + "[convolutional]\nsize=2\npad=1\ndilation=2\n", 9, "dilation=2: expected a padding of (size - 1) / 2"),
        (
            CONV8 + "[convolutional]\npadding=1\n",
            9,
            "padding=1 with size=1 and stride=1 gives wrong results in Darknet",
        ),
        (CONV8 + "[convolutional]\ngroups=3\n", 9, "groups=3 does not divide both its 8 input channels and filters=1"),
        (CONV8 + "[convolutional]\nsize=30\n", 9, "size=30 is larger than its input of 8 x 20 x 24 with padding 0"),
        (CONV8 + "[maxpool]\nsize=2\npadding=4\n", 9, "padding=4 gives windows of size=2 without any value"),
        (CONV8 + "[maxpool]\nsize=2\nstride=1\npadding=3\n", 9, "padding=3 gives windows of size=2 without any value"),
        (CONV8 + "[upsample]\nstride=0\n", 9, "stride=0 is not a valid factor"),
        (CONV8 + "[upsample]\nstride=-3\n", 9, "stride=-3 does not divide its input of 8 x 20 x 24"),
        (CONV8 + "[reorg]\nstride=3\n", 9, "stride=3 does not divide its input of 20 x 24"),
        (CONV8 + "[reorg]\nstride=4\n", 9, "stride=4: expected a multiple of 16 channels, got 8"),
        (
            CONV8 + "[maxpool]\nstride=2\n[route]\nlayers=-1,0\n",
            11,
            "layers=0 has a map of 8 x 20 x 24 and layers=-1 one of",
        ),
        (CONV8 + "[route]\nlayers=0\ngroups=3\n", 9, "groups=3 does not divide the 8 channels of layers=0"),
        (CONV8 + "[route]\nlayers=0\ngroups=2\ngroup_id=2\n", 9, "group_id: expected less than groups=2, got 2"),
        (
            CONV8 + "[maxpool]\nstride=2\n[shortcut]\nfrom=0\n",
            11,
            "from: a map of 8 x 20 x 24 cannot be added to one of 8",
        ),
        (
            CONV8 + "[maxpool]\nstride=2\n[sam]\nfrom=0\n",
            11,
            "from: maps of 8 x 20 x 24 and 8 x 10 x 12 cannot be multi",
        ),
        (
            CONV8 * 2 + "[scale_channels]\nfrom=0\n",
            13,
            "expected an input of 8 x 1 x 1 for layer from=0, got 8 x 20 x 24",
        ),
        (CONV8 + "[convolutional]\nshare_index=0\n", 9, "share_index=0: expected arrays of {'biases': (1,)"),
        (
            CONV8.replace("pad=1", "pad=1\nantialiasing=1") + "[maxpool]\n[route]\nlayers=0\n",
            11,
            "refers to layer 0, which has antialiasing",
        ),
        (
            CONV8 + "[yolo]\nanchors=1,1\nclasses=4\n",
            9,
            "expected 1 anchors x (5 + classes=4) = 9 input channels, got 8",
        ),
        (
            "[convolutional]\nfilters=6\n[yolo]\nanchors=1,1\nclasses=1\n[maxpool]\n",
            10,
            "would read the output of the [yolo]",
        ),
        (
            "[convolutional]\nfilters=6\n[yolo]\nanchors=1,1\nclasses=1\n[route]\nlayers=-1\n",
            10,
            "refers to layer 1, a [yolo], whose output no layer can read",
        ),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_their_line(layers, line, expected):
    (found,) = mistakes(layers)
    assert found.startswith(f"n.cfg:{line}: [")
    assert expected in found


def test_all_mistakes_are_reported_without_those_that_follow_from_others():
    broken = CONV8 + "[reorg]\nstride=3\n[convolutional]\n[maxpool]\n[route]\nlayers=0\n[upsample]\nstride=0\n"
    assert [m.split(":")[1] for m in mistakes(broken)] == ["9", "15"]


@pytest.mark.parametrize(
    ("layers", "net", "expected"),
    [
        ("[convolutional]\nfilters=2000000000\n", {}, "n.cfg:5: [convolutional] has an output of 2000000000 x 20 x 24"),
        ("[convolutional]\nfilters=1000000\nstride=24\n" * 2, {}, "brings the network to 1000005000000 parameters"),
        ("[avgpool]\n[convolutional]\nfilters=2000000000\n", {}, "has an output of 2000000000 x 1 x 1"),
        ("[avgpool]\n[connected]\noutput=2000000000\n", {}, "has an output of 2000000000 x 1 x 1"),
        ("[upsample]\nstride=2147483647\n", {}, "has an output of 3 x 42949672940 x 51539607528"),
        ("[upsample]\nstride=100\n" * 500, {}, "has an output of"),
        (CONV8 + f"[route]\nlayers={','.join('0' * 9000)}\n", {"width": 1000}, "has an output of 72000 x 20 x 1000"),
        (
            CONV8,
            {"width": 60_000, "height": 60_000},
            "n.cfg:1: [net] expected an input of at most 1073741824 values, got 3 x 60000 x 60000",
        ),
        (CONV8, {"channels": 2_000_000_000}, "values, got 2000000000 x 20 x 24"),
    ],
)
def test_network_that_is_too_large_is_refused_before_memory_is_taken(layers, net, expected):
    tracemalloc.start()
    begun = time.process_time()
    try:
        found = mistakes(layers, **net)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert any(expected in m for m in found), found
    assert peak_bytes < 100 * len(layers) + 2_000_000
    assert time.process_time() - begun < 20


# --- parameters of YOLOv2, as Darknet counts them --------------------------------------------------------------------


def block(*filters: int, sizes: str = "") -> str:
    """Convolutions with normalisation, of the given sizes or alternately 3 x 3 and 1 x 1."""
    return "".join(
        f"[convolutional]\nbatch_normalize=1\nfilters={count}\nsize={size}\npad=1\nactivation=leaky\n"
        for count, size in zip(filters, sizes or "31" * len(filters), strict=False)
    )


POOL = "[maxpool]\nsize=2\nstride=2\n"
REGION = (
    "[convolutional]\nfilters=425\nsize=1\npad=1\nactivation=linear\n"
    "[region]\nanchors=1,1,2,2,3,3,4,4,5,5\nclasses=80\nnum=5\nsoftmax=1\n"
)
YOLOV2_TINY = "".join(block(2**n) + POOL for n in range(4, 9)) + block(512) + POOL.replace("stride=2", "stride=1")
YOLOV2 = POOL.join(
    (
        block(32),
        block(64),
        block(128, 64, 128),
        block(256, 128, 256),
        block(512, 256, 512, 256, 512),
        block(1024, 512, 1024, 512, 1024) + block(1024, 1024, sizes="33"),
    )
)


@pytest.mark.parametrize(
    ("layers", "num_layers", "parameters"),
    [
        (YOLOV2_TINY + block(1024, 512, sizes="33") + REGION, 16, 11_237_145),
        (
            YOLOV2
            + "[route]\nlayers=-9\n"
            + block(64, sizes="1")
            + "[reorg]\nstride=2\n[route]\nlayers=-1,-4\n"
            + block(1024)
            + REGION,
            32,
            50_983_561,
        ),
    ],
)
def test_yolov2_networks_have_darknets_number_of_parameters(layers, num_layers, parameters):
    cfg = network(layers, width=416, height=416)
    assert len(cfg.layers) == num_layers
    assert num_parameters(cfg) == parameters
    assert infer_shapes(cfg)[-1].output_chw == (425, 13, 13)
