"""Base classes of the sections of a Darknet .cfg, the `[net]` section, and the declaration of keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

T = TypeVar("T")

ACTIVATIONS = (
    "linear", "logistic", "leaky", "relu", "relu6", "mish", "swish", "hard_mish", "tanh", "loggy", "elu", "selu",
    "gelu", "relie", "ramp", "plse", "hardtan", "lhtan", "stair", "normalize_channels", "normalize_channels_softmax",
    "normalize_channels_softmax_maxval",
)  # fmt: skip
# Darknet's own backward pass of these is wrong, or differs between CPU and GPU.
UNTRAINABLE_ACTIVATIONS = (
    "gelu",
    "normalize_channels",
    "normalize_channels_softmax",
    "normalize_channels_softmax_maxval",
)
IOU_KINDS = ("iou", "giou", "diou", "ciou")
NMS_KINDS = ("default", "greedynms", "diounms", "cornersnms")
POLICIES = ("constant", "step", "exp", "poly", "steps", "sigmoid", "random", "sgdr")
MAX_INTEGER = 2**31 - 1  # Darknet's int
_LONGEST_SIDE = 65_535  # of a JPEG, in pixels; no network input is larger


@dataclass(frozen=True)
class Constraints:
    """Values that a key accepts, and its place in a file.

    Attributes:
        low: smallest number, inclusive.
        high: largest number, inclusive.
        choices: the words of a key that holds a word.
        aliases: other words -> the words of `choices` that they stand for.
        explicit: written even if the value is the default.
        required: must be in every file.
    """

    low: float
    high: float
    choices: tuple[str, ...]
    aliases: Mapping[str, str]
    explicit: bool
    required: bool


def key(
    default: T,
    *,
    low: float = -MAX_INTEGER,
    high: float = MAX_INTEGER,
    choices: tuple[str, ...] = (),
    aliases: Mapping[str, str] | None = None,
    explicit: bool = False,
    required: bool = False,
) -> T:
    """Declare a field of a section that is a key of the file; a required key is also explicit (see `Constraints`)."""
    constraints = Constraints(low, high, choices, aliases or {}, explicit or required, required)
    return field(default=default, metadata={"constraints": constraints})


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base class of sections.

    Attributes:
        line: 1-based line of the header, 0 for a section made by a program; not compared by equality.
    """

    name: ClassVar[str] = ""
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    line: int = field(default=0, compare=False, repr=False)

    def _derive(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class NetSection(Section):
    """`[net]`: the network input and the training recipe.

    `width` and `height` are pixels of the network input. An update takes `batch` images, in `subdivisions` parts.
    """

    name: ClassVar[str] = "net"
    refused: ClassVar[Mapping[str, tuple[str, str]]] = {
        "time_steps": ("1", "sequences of frames are not supported"),
        "track": ("0", "tracking networks are not supported"),
        "sequential_subdivisions": ("1", "sequences of frames are not supported"),
        "seq_scales": ("", "sequences of frames are not supported"),
        "adversarial_lr": ("0", "adversarial training is not supported"),
        "attention": ("0", "adversarial training is not supported"),
        "unsupervised": ("0", "unsupervised training is not supported"),
    }
    ignored: ClassVar[frozenset[str]] = frozenset((
        "max_chart_loss", "try_fix_nan", "optimized_memory", "workspace_size_limit_MB", "use_cuda_graph", "loss_scale",
        "show_receptive_field", "augment_speed", "inputs", "max_crop", "min_crop",
    ))  # fmt: skip

    batch: int = key(1, low=1, explicit=True)
    subdivisions: int = key(1, low=1, explicit=True)
    width: int = key(0, low=1, high=_LONGEST_SIDE, required=True)
    height: int = key(0, low=1, high=_LONGEST_SIDE, required=True)
    channels: int = key(0, low=1, required=True)
    momentum: float = key(0.9)
    decay: float = key(0.0001)
    angle: float = key(0.0)
    aspect: float = key(1.0)
    saturation: float = key(1.0)
    exposure: float = key(1.0)
    hue: float = key(0.0)
    flip: bool = key(True)
    blur: float = key(0.0)
    gaussian_noise: float = key(0.0)
    mixup: bool = key(False)
    cutmix: bool = key(False)
    mosaic: bool = key(False)
    mosaic_bound: bool = key(False)
    letter_box: bool = key(False)
    label_smooth_eps: float = key(0.0)
    resize_step: int = key(32, low=1)
    dynamic_minibatch: bool = key(False)
    contrastive: bool = key(False)
    contrastive_jit_flip: bool = key(False)
    contrastive_color: bool = key(False)
    adam: bool = key(False)
    B1: float = key(0.9)
    B2: float = key(0.999)
    eps: float = key(0.000001)
    ema_alpha: float = key(0.0)
    weights_reject_freq: int = key(0)
    equidistant_point: int = key(0)
    badlabels_rejection_percentage: float = key(0.0)
    num_sigmas_reject_badlabels: float = key(0.0)
    learning_rate: float = key(0.001)
    learning_rate_min: float = key(0.00001)
    burn_in: int = key(0, low=0)
    power: float = key(4.0)
    max_batches: int = key(0, low=0)
    policy: str = key("constant", choices=POLICIES)
    steps: tuple[int, ...] = key(())
    scales: tuple[float, ...] = key(())
    step: int = key(1, low=1)
    scale: float = key(1.0)
    gamma: float = key(1.0)
    sgdr_cycle: int = key(0, low=0)  # 0: max_batches
    sgdr_mult: int = key(2, low=1)


@dataclass(frozen=True, kw_only=True)
class LayerSection(Section):
    """Base class of layer sections, with the keys of every layer; they concern training and the weights file only."""

    learning_rate: float = key(1.0)
    clip: float = key(0.0)
    onlyforward: bool = key(False)
    dont_update: int = key(0)
    burnin_update: int = key(0)
    stopbackward: int = key(0)  # AlexeyAB: 1 always, N > 1 until iteration N; hank-ai: any value always
    train_only_bn: bool = key(False)
    dontload: bool = key(False)
    dontloadscales: bool = key(False)
