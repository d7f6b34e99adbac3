"""Shapes of the layers of a Darknet network and of its stored arrays, computed from the .cfg alone.

Nothing is allocated here, so a network that is too large is refused before it takes memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from detector.darknet import sections
from detector.darknet.cfg_file import DarknetCfg
from detector.darknet.sections import LayerSection
from detector.errors import DarknetError

Shape = tuple[int, int, int]  # channels, height, width

# Each limit is 4 GiB of float32. The largest released network has 2.8e8 parameters and maps of 9e7 values.
MAX_PARAMETERS = 2**30
MAX_MAP_VALUES = 2**30
MAX_MISTAKES = 50

HEADS = (sections.AnchorSection, sections.RegionSection)
_ENDS = (*HEADS, sections.ContrastiveSection)  # no layer can read the output of these


@dataclass(frozen=True)
class LayerShape:
    """Shapes of a layer's input and output, each (channels, height, width) of one image.

    Attributes:
        input_chw: the previous layer's output; for a route, its own output.
        output_chw: the layer's output; for a head, its input.
        arrays: name -> shape of the layer's own arrays, in the order of a .weights file.
    """

    input_chw: Shape
    output_chw: Shape
    arrays: dict[str, tuple[int, ...]]

    @property
    def num_parameters(self) -> int:
        """Number of stored values, running statistics included, as Darknet counts them."""
        return sum(math.prod(shape) for shape in self.arrays.values())


class _MismatchError(ValueError):
    """Mistake in one layer, without the location."""


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise _MismatchError(text)


def infer_shapes(cfg: DarknetCfg, image_hw: tuple[int, int] | None = None) -> tuple[LayerShape, ...]:
    """Compute the shapes of all layers.

    Args:
        cfg: the network.
        image_hw: height and width of the network input in pixels; by default those of `[net]`.

    Raises:
        DarknetError: layers do not fit together, or need a geometry or a size that cannot be honoured; it lists all
            mistakes, each with file, line, section and key.
    """
    height, width = image_hw or (cfg.net.height, cfg.net.width)
    chain = _Chain(cfg)
    mistakes: list[str] = []
    shapes: list[LayerShape | None] = []
    previous: Shape | None = (cfg.net.channels, height, width)
    if math.prod(cast(Shape, previous)) > MAX_MAP_VALUES:
        raise DarknetError(
            f"{cfg.place(cfg.net)} expected an input of at most {MAX_MAP_VALUES} values, got "
            f"{cfg.net.channels} x {height} x {width}; reduce width and height"
        )
    num_parameters = 0
    for index, section in enumerate(cfg.layers):
        shape = None
        try:
            shape = chain.shape(index, previous, shapes)
            if shape:
                num_parameters += shape.num_parameters
                _check_size(shape, num_parameters)
        except _MismatchError as mistake:
            mistakes.append(f"{cfg.place(section)} {mistake}")
            shape = None
            if num_parameters > MAX_PARAMETERS or len(mistakes) > MAX_MISTAKES:
                break
        shapes.append(shape)
        previous = shape.output_chw if shape else None
    if mistakes:
        raise DarknetError("\n".join(mistakes))
    return tuple(filter(None, shapes))


def _check_size(shape: LayerShape, num_parameters: int) -> None:
    size = " x ".join(map(str, shape.output_chw))
    _need(math.prod(shape.output_chw) <= MAX_MAP_VALUES, f"has an output of {size}, more than {MAX_MAP_VALUES} values")
    _need(
        num_parameters <= MAX_PARAMETERS,
        f"brings the network to {num_parameters} parameters; expected at most {MAX_PARAMETERS}",
    )


class _Chain:
    """Computation of the shapes, layer by layer; a shape is None if the shape of an earlier layer is not known."""

    def __init__(self, cfg: DarknetCfg) -> None:
        self._cfg = cfg
        self._kernels: dict[int, dict[str, tuple[int, ...]]] = {}  # arrays of all convolutions, shared ones included

    def shape(self, index: int, previous: Shape | None, shapes: list[LayerShape | None]) -> LayerShape | None:
        """Compute the shape of a layer.

        Raises:
            _MismatchError: the layer does not fit its inputs.
        """
        section = self._cfg.layers[index]
        sources = self._source_shapes(index, shapes)
        if isinstance(section, sections.RouteSection):
            output = _route(section, sources) if sources else None
            return LayerShape(output, output, {}) if output else None
        if (
            index
            and isinstance(self._cfg.layers[index - 1], _ENDS)
            and not isinstance(section, sections.ContrastiveSection)
        ):
            name = self._cfg.layers[index - 1].name
            raise _MismatchError(
                f"would read the output of the [{name}] before it; insert a [route] to an earlier layer"
            )
        if previous is None or sources is None:
            return None
        output = _output(section, previous, sources)
        return LayerShape(previous, output, self._arrays(index, section, previous, len(sources)))

    def _source_shapes(self, index: int, shapes: list[LayerShape | None]) -> list[Shape] | None:
        shapes_of_sources = []
        for source in self._cfg.sources(index):
            section = self._cfg.layers[source]
            if isinstance(section, _ENDS):
                raise _MismatchError(f"refers to layer {source}, a [{section.name}], whose output no layer can read")
            if getattr(section, "antialiasing", 0):
                raise _MismatchError(
                    f"refers to layer {source}, which has antialiasing; Darknet computes wrong sizes for that"
                )
            shapes_of_sources.append(shapes[source])
        known = [shape.output_chw for shape in shapes_of_sources if shape]
        return known if len(known) == len(shapes_of_sources) else None

    def _arrays(self, index: int, section: LayerSection, given: Shape, num_sources: int) -> dict[str, tuple[int, ...]]:
        if isinstance(section, sections.ConvolutionalSection):
            kernel = (section.filters, given[0] // section.groups, section.size, section.size)
            statistics = _normalisation(section.filters) if section.batch_normalize else {}
            self._kernels[index] = {"biases": (section.filters,), **statistics, "weights": kernel}
            if section.share_index is None:
                return self._kernels[index]
            shared = section.share_index if section.share_index >= 0 else index + section.share_index
            theirs = self._kernels.get(shared, self._kernels[index])
            _need(
                theirs == self._kernels[index],
                f"share_index={section.share_index}: expected arrays of {self._kernels[index]}, got {theirs}",
            )
        elif isinstance(section, sections.ConnectedSection):
            statistics = _normalisation(section.output) if section.batch_normalize else {}
            return {"biases": (section.output,), "weights": (section.output, math.prod(given)), **statistics}
        elif isinstance(section, sections.ShortcutSection) and section.weights_type != "none":
            per_input = (given[0],) if section.weights_type == "per_channel" else ()
            return {"weights": (num_sources + 1, *per_input)}
        return {}


def _normalisation(num_channels: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("scales", "rolling_mean", "rolling_variance"), (num_channels,))


def _output(section: LayerSection, given: Shape, sources: list[Shape]) -> Shape:
    """Compute the output shape of a layer, except a route, from its input and its other sources."""
    channels, height, width = given
    if isinstance(section, sections.ConvolutionalSection):
        return _convolution(section, given)
    if isinstance(section, sections.PoolSection):
        return _pool(section, given)
    if isinstance(section, sections.AvgpoolSection):
        return channels, 1, 1
    if isinstance(section, sections.UpsampleSection):
        return _upsample(section, given)
    if isinstance(section, sections.ReorgSection | sections.Reorg3dSection):
        s = section.stride
        _need(height % s == 0 and width % s == 0, f"stride={s} does not divide its input of {height} x {width}")
        if isinstance(section, sections.ReorgSection):
            _need(channels % s**2 == 0, f"stride={s}: expected a multiple of {s**2} channels, got {channels}")
        return channels * s**2, height // s, width // s
    if isinstance(section, sections.ConnectedSection):
        return section.output, 1, 1
    if isinstance(section, sections.ShortcutSection):
        for source in sources:
            _need(source[1:] == given[1:], f"from: a map of {_size(source)} cannot be added to one of {_size(given)}")
    if isinstance(section, sections.SamSection):
        _need(sources[0] == given, f"from: maps of {_size(sources[0])} and {_size(given)} cannot be multiplied")
    if isinstance(section, sections.ScaleChannelsSection):
        expected = (1, *sources[0][1:]) if section.scale_wh else (sources[0][0], 1, 1)
        _need(
            given == expected,
            f"expected an input of {_size(expected)} for layer from={section.from_}, got {_size(given)}",
        )
        return sources[0]
    if isinstance(section, HEADS):
        _check_head(section, channels)
    return given


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _sides(given: Shape, padding: int, size: int, stride_y: int, stride_x: int) -> Iterator[int]:
    """Yield height and width of the output of a sliding window; `padding` is the total of both sides."""
    for side, stride in ((given[1], stride_y), (given[2], stride_x)):
        _need(side + padding >= size, f"size={size} is larger than its input of {_size(given)} with padding {padding}")
        yield (side + padding - size) // stride + 1


def _blurred(kind: int, sides: tuple[int, int], strides: tuple[int, int]) -> tuple[int, int]:
    """Return the sides after the blur of `antialiasing`: 3 x 3 with padding 1, or 2 x 2 without padding."""
    _need(kind == 1 or min(sides) >= 2, f"antialiasing=2: expected at least 2 x 2 values, got {sides[0]} x {sides[1]}")
    padding, size = (2, 3) if kind == 1 else (0, 2)
    height, width = ((side + padding - size) // stride + 1 for side, stride in zip(sides, strides, strict=True))
    return height, width


def _convolution(section: sections.ConvolutionalSection, given: Shape) -> Shape:
    size, dilation, groups = section.size, section.dilation, section.groups
    _need(
        given[0] % groups == 0 and section.filters % groups == 0,
        f"groups={groups} does not divide both its {given[0]} input channels and filters={section.filters}",
    )
    padding = section.kernel_padding // dilation  # Darknet ignores the dilation when it computes sizes
    _need(
        dilation == 1 or 2 * padding == size - 1,
        f"dilation={dilation}: expected a padding of (size - 1) / 2, got size={size} with {padding}; Darknet computes "
        "wrong sizes for any other",
    )
    _need(
        size > 1 or padding == 0 or section.stride_x > 1,
        f"padding={padding} with size=1 and stride=1 gives wrong results in Darknet; remove it",
    )
    strides = (section.stride_y, section.stride_x)
    host = (1, 1) if section.antialiasing else strides
    height, width = _sides(given, 2 * padding, size, *host)
    if section.antialiasing:
        height, width = _blurred(section.antialiasing, (height, width), strides)
    return section.filters, height, width


def _pool(section: sections.PoolSection, given: Shape) -> Shape:
    padding = cast(int, section.padding)  # the section derives it if the file has none
    strides = (section.stride_y, section.stride_x)
    host = (1, 1) if section.antialiasing else strides
    height, width = _sides(given, padding, section.size, *host)
    last = max(
        (out - 1) * s - padding // 2 - side for out, s, side in zip((height, width), host, given[1:], strict=True)
    )
    _need(
        padding // 2 < section.size and last < 0,
        f"padding={padding} gives windows of size={section.size} without any value of the input of {_size(given)}",
    )
    if section.antialiasing:
        height, width = _blurred(section.antialiasing, (height, width), strides)
    return given[0], height, width


def _upsample(section: sections.UpsampleSection, given: Shape) -> Shape:
    channels, height, width = given
    stride = section.stride
    _need(stride != 0, "stride=0 is not a valid factor")
    if stride > 0:
        return channels, height * stride, width * stride
    _need(height % stride == 0 and width % stride == 0, f"stride={stride} does not divide its input of {_size(given)}")
    return channels, height // -stride, width // -stride


def _route(section: sections.RouteSection, sources: list[Shape]) -> Shape:
    groups = section.groups
    _need(section.group_id < groups, f"group_id: expected less than groups={groups}, got {section.group_id}")
    first = sources[0][1:]
    for reference, source in zip(section.layers, sources, strict=True):
        if source[1:] != first:
            raise _MismatchError(
                f"layers={reference} has a map of {_size(source)} and layers={section.layers[0]} one of "
                f"{_size(sources[0])}; only maps of equal height and width can be concatenated"
            )
        if source[0] % groups:
            raise _MismatchError(f"groups={groups} does not divide the {source[0]} channels of layers={reference}")
    return sum(source[0] for source in sources) // groups, *sources[0][1:]


def _check_head(section: LayerSection, channels: int) -> None:
    if isinstance(section, sections.RegionSection):
        num_anchors, num_values, classes = section.num, 5, section.classes
    else:
        head = cast(sections.AnchorSection, section)
        num_values = 9 if isinstance(section, sections.GaussianYoloSection) else 5
        num_anchors, classes = len(head.mask), head.classes
    expected = num_anchors * (num_values + classes)
    _need(
        channels == expected,
        f"expected {num_anchors} anchors x ({num_values} + classes={classes}) = {expected} input channels, "
        f"got {channels}; set filters={expected} in the layer before it",
    )


def num_parameters(cfg: DarknetCfg) -> int:
    """Return the number of values in the network's full .weights file, running statistics included.

    Raises:
        DarknetError: see `infer_shapes`.
    """
    return sum(shape.num_parameters for shape in infer_shapes(cfg))
