"""The kernels on CUDA tensors: float32, float16 and bfloat16, channels_last and NCHW.

The operators of `mish.py` and `norm_mish.py` call these functions and those of `cpu.py`. Tensors given together have
one shape; the others are converted to the dtype and memory format of x. Per-channel values are float32 (C,).

Kernels run on torch's current stream of the tensor's device. Those of a storage type are compiled (`nvrtc.py`) and
loaded when they are first called on a device. A CUDA graph cannot record that, so call `warmup` before recording. Sums
are the same bits in every run on GPUs of one model.
"""

from __future__ import annotations

import functools
import operator
import struct
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.ops import cuda_driver, native, nvrtc
from detector.ops.cpu import dense, image_format, like
from detector.ops.native import KernelsUnavailableError

_PART_COLUMNS = 8  # channels of a block in the kernels that combine partial sums
# The arguments of the kernels, in C's own alignment.
_POINTERS, _PLAN, _FLAT, _PART = (struct.Struct(form) for form in ("11P", "6q13i", "3Pq", "6Pdq2i"))
_EPSILON = struct.Struct("f")
_INT_MAX = 2**31 - 1


# ---- choice of the kernels


def supports(x: Tensor) -> bool:
    """Return true for tensors that the kernels accept: on a GPU, float32, float16 or bfloat16, not empty."""
    return x.is_cuda and x.dtype in nvrtc.STORAGE and x.numel() > 0


def available(device: torch.device) -> bool:
    """Return true if the kernels run on a GPU; compile and load them first. `DETECTOR_MISH` can overrule it.

    Raises:
        KernelsUnavailableError: `DETECTOR_MISH=fused` requires them and they are not available, or a CUDA graph is
            being recorded before they were loaded.
    """
    return _available(cuda_driver.current_device() if device.index is None else device.index)


@functools.cache
def _available(index: int) -> bool:
    if native.choice() == "native":
        return False
    try:
        if torch.version.cuda is None:
            raise KernelsUnavailableError("this torch was not built for NVIDIA GPUs")
        if not cuda_driver.device_of(index).kernels:
            cuda_driver.load(index, torch.bfloat16)
    except KernelsUnavailableError as error:
        if native.choice() == "fused" or cuda_driver.capturing():
            raise
        warnings.warn(f"Mish runs without its fused GPU kernels: {error}", RuntimeWarning, stacklevel=3)
        return False
    return True


def warmup(device: torch.device | int | None = None) -> None:
    """Compile and load every kernel on a GPU, by default the current one, so that a CUDA graph can record them.

    Raises:
        KernelsUnavailableError: they are not available; the message says why.
    """
    index = device.index if isinstance(device, torch.device) else device
    index = cuda_driver.current_device() if index is None else index
    with torch.cuda.device(index):
        for dtype in nvrtc.STORAGE:
            cuda_driver.load(index, dtype)


# ---- division of the work into blocks


@dataclass(frozen=True)
class _Cut:
    """Launch of a kernel over channels; `packed` is the part of its arguments that follows the pointers."""

    kernel: str
    num_blocks: int
    num_threads: int
    num_parts: int
    packed: bytes


def _columns(num_owners: int) -> int:
    """Return the owners that a block holds side by side: enough for whole memory lines, few enough for long columns."""
    divisors = [number for number in range(1, cuda_driver.THREADS + 1) if num_owners % number == 0]
    narrow = max(number for number in divisors if number <= 32)
    if narrow >= min(num_owners, 8):
        return narrow
    return min((number for number in divisors if number > 32), default=min(num_owners, cuda_driver.THREADS))


@functools.lru_cache(maxsize=4096)
def _cut(
    name: str, batch: int, channels: int, plane: int, last: bool, itemsize: int, aligned: bool, num_multiprocessors: int
) -> _Cut:
    width = 16 // itemsize
    if not aligned or (channels if last else plane) % width:
        width = 1
    cells, resident = cuda_driver.CHANNEL_KERNELS[name]
    cell_bytes = width * itemsize
    num_threads, columns = cuda_driver.THREADS, 1
    if last:
        owners = channels // width
        columns = _columns(owners)
        merged = batch * plane <= _INT_MAX // 2
        images, extent = (1, batch * plane) if merged else (batch, plane)
        owner_step, line_step = cell_bytes, owners * cell_bytes
    else:
        owners, images, extent = channels, batch, plane // width
        owner_step, line_step = plane * itemsize, cell_bytes
        num_threads = min(cuda_driver.THREADS, -(-extent // (32 * cells)) * 32)
    image_step = channels * plane * itemsize
    lines = num_threads // columns
    tile = lines * cells
    chunks = -(-extent // tile)
    owner_tiles = -(-owners // columns)
    num_resident = num_multiprocessors * resident * cuda_driver.THREADS // num_threads
    tiles = images * chunks
    parts = min(tiles, max(1, num_resident // owner_tiles))
    parts = -(-tiles // -(-tiles // parts))  # the fewest parts that take no more steps
    chunk_step = parts % chunks
    packed = _PLAN.pack(
        owner_step,
        image_step,
        line_step,
        lines * line_step,
        parts // chunks * image_step + chunk_step * tile * line_step,
        image_step - chunks * tile * line_step,
        extent,
        images,
        chunks,
        columns,
        lines,
        tile,
        chunk_step,
        chunk_step * tile,
        chunks * tile,
        owners,
        owner_tiles,
        parts,
        channels,
    )
    layout = "odd" if width == 1 else "last" if last else "planes"
    return _Cut(f"{name}_{layout}", owner_tiles * parts, num_threads, parts, packed)


def _cut_of(name: str, x: Tensor, pointers: int) -> _Cut:
    """Return the launch for a tensor in image format; `pointers` has the bits of every address."""
    batch, channels = x.shape[:2]
    plane = x.numel() // (batch * channels)
    last = channels > 1 and (plane == 1 or not x.is_contiguous())
    num_multiprocessors = cuda_driver.device_of(x.get_device()).num_multiprocessors
    return _cut(name, batch, channels, plane, last, x.element_size(), pointers % 16 == 0, num_multiprocessors)


def _over_channels(cut: _Cut, x: Tensor, *pointers: int, epsilon: float = 0.0) -> None:
    content = cuda_driver.frame.content
    _POINTERS.pack_into(content, 0, *pointers)
    content[_POINTERS.size : _POINTERS.size + _PLAN.size] = cut.packed
    _EPSILON.pack_into(content, _POINTERS.size + _PLAN.size, epsilon)
    cuda_driver.launch(x, cut.kernel, cut.num_blocks, cut.num_threads)


def _bits(addresses: tuple[int, ...]) -> int:
    return functools.reduce(operator.or_, addresses)


def _values(per_channel: Tensor) -> Tensor:
    if per_channel.dtype == torch.float32 and per_channel.is_contiguous():
        return per_channel
    return per_channel.float().contiguous()


# ---- the operations


def _flat(name: str, x: Tensor, out: Tensor, grad: Tensor | None = None) -> None:
    pointers = x.data_ptr(), 0 if grad is None else grad.data_ptr(), out.data_ptr()
    num = x.numel()
    aligned = (pointers[0] | pointers[1] | pointers[2]) % 16 == 0
    per_block = cuda_driver.THREADS * cuda_driver.FLAT_KERNELS[name] * (16 // x.element_size() if aligned else 1)
    _FLAT.pack_into(cuda_driver.frame.content, 0, *pointers, num)
    cuda_driver.launch(x, f"{name}_cells" if aligned else f"{name}_odd", -(-num // per_block))


def mish_forward(x: Tensor) -> Tensor:
    """Return Mish of a tensor of any shape."""
    x = dense(x)
    y = torch.empty_like(x)
    if x.numel():
        _flat("mish_forward", x, y)
    return y


def mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the product grad * mish'(x)."""
    x = dense(x)
    out = torch.empty_like(x)
    if x.numel():
        _flat("mish_backward", x, out, like(grad, x))
    return out


@dataclass(frozen=True)
class _Norm:
    """Mean, scale and bias of each channel; with a variance, the scale is scale / sqrt(variance + epsilon)."""

    mean: Tensor
    scale: Tensor
    bias: Tensor
    variance: Tensor | None = None
    epsilon: float = 0.0

    def addresses(self) -> tuple[int, int, int, int]:
        """Return the addresses in the order of the kernels' arguments."""
        variance = 0 if self.variance is None else self.variance.data_ptr()
        return self.mean.data_ptr(), self.scale.data_ptr(), variance, self.bias.data_ptr()


def norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, float32; NaN for empty channels."""
    x = image_format(x)
    channels = x.shape[1]
    if not x.numel():
        mean, variance = torch.full((2, channels), torch.nan, device=x.device).unbind()
        return mean, variance
    cut = _cut_of("norm_statistics", x, x.data_ptr())
    partial = torch.empty((2 * channels + 1) * cut.num_parts, dtype=torch.float32, device=x.device)
    _over_channels(cut, x, x.data_ptr(), *[0] * 9, partial.data_ptr())
    mean, variance = partial.new_empty((2, channels)).unbind()
    pointers = partial.data_ptr(), 0, mean.data_ptr(), variance.data_ptr(), 0, 0
    _put_together("join_statistics", x, pointers, 0.0, cut.num_parts)
    return mean, variance


def _put_together(name: str, x: Tensor, pointers: tuple[int, ...], epsilon: float, num_parts: int) -> None:
    channels = x.shape[1]
    _PART.pack_into(cuda_driver.frame.content, 0, *pointers, epsilon, x.numel() // channels, num_parts, channels)
    cuda_driver.launch(x, name, -(-channels // _PART_COLUMNS))


def norm_mish_forward(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Return mish(z) + residual with z = scale (x - mean) + bias."""
    return _norm_forward(x, _Norm(_values(mean), _values(scale), _values(bias)), residual)


def _norm_forward(x: Tensor, norm: _Norm, residual: Tensor | None) -> Tensor:
    x = image_format(x)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    name = "norm_mish_forward" if residual is None else "norm_mish_residual"
    residual = None if residual is None else like(residual, x)
    add = 0 if residual is None else residual.data_ptr()
    pointers = x.data_ptr(), 0, add, y.data_ptr(), *norm.addresses(), 0, 0, 0
    _over_channels(_cut_of(name, x, _bits(pointers)), x, *pointers, epsilon=norm.epsilon)
    return y


def norm_mish_sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over each channel of g = grad * mish'(z) and of g (x - mean), float32."""
    sums = _norm_sums(grad, x, _Norm(_values(mean), _values(scale), _values(bias)))
    return sums[0], sums[1]


def _norm_sums(grad: Tensor, x: Tensor, norm: _Norm) -> tuple[Tensor, ...]:
    """Return the two sums; with a variance, gradients of bias and weight, then constant and slope of that of x."""
    x = image_format(x)
    channels, num_results = x.shape[1], 2 if norm.variance is None else 4
    if not x.numel():
        return torch.zeros((num_results, channels), device=x.device).unbind()
    grad = like(grad, x)
    addresses = norm.addresses()
    cut = _cut_of("norm_mish_sums", x, x.data_ptr() | grad.data_ptr() | _bits(addresses))
    partial = torch.empty(2 * channels * cut.num_parts, dtype=torch.float32, device=x.device)
    pointers = x.data_ptr(), grad.data_ptr(), 0, 0, *addresses, 0, 0, partial.data_ptr()
    _over_channels(cut, x, *pointers, epsilon=norm.epsilon)
    results = partial.new_empty((num_results, channels)).unbind()
    outputs = *(result.data_ptr() for result in results), *[0] * (4 - num_results)
    _put_together("add_parts", x, (partial.data_ptr(), addresses[2], *outputs), norm.epsilon, cut.num_parts)
    return results


def norm_mish_backward(
    grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor, constant: Tensor, slope: Tensor
) -> Tensor:
    """Return the product scale (g - constant - (x - mean) slope) with g = grad * mish'(z)."""
    norm = _Norm(_values(mean), _values(scale), _values(bias))
    return _norm_backward(grad, x, norm, _values(constant), _values(slope))


def _norm_backward(grad: Tensor, x: Tensor, norm: _Norm, constant: Tensor, slope: Tensor) -> Tensor:
    x = image_format(x)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    grad = like(grad, x)
    per_channel = *norm.addresses(), constant.data_ptr(), slope.data_ptr()
    pointers = x.data_ptr(), grad.data_ptr(), 0, out.data_ptr(), *per_channel, 0
    _over_channels(_cut_of("norm_mish_backward", x, _bits(pointers)), x, *pointers, epsilon=norm.epsilon)
    return out


def norm_mish_train(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mish(batch norm of x) + residual, mean and biased variance, in three launches: a training step."""
    x = image_format(x)
    mean, variance = norm_statistics(x)
    y = _norm_forward(x, _Norm(mean, _values(weight), _values(bias), variance, epsilon), residual)
    return y, mean, variance


def norm_mish_train_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias of `norm_mish_train`, in three launches."""
    x = image_format(x)
    grad = like(grad, x)
    norm = _Norm(_values(mean), _values(weight), _values(bias), _values(variance), epsilon)
    grad_bias, grad_weight, constant, slope = _norm_sums(grad, x, norm)
    return _norm_backward(grad, x, norm, constant, slope), grad_weight, grad_bias


def bias_mish_(x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Compute mish(x + bias) + residual in place of x; return x."""
    formatted = image_format(x)
    if not x.numel():
        return x
    name = "bias_mish" if residual is None else "bias_mish_residual"
    residual = None if residual is None else like(residual, formatted)
    add = 0 if residual is None else residual.data_ptr()
    bias = _values(bias)
    pointers = formatted.data_ptr(), 0, add, formatted.data_ptr(), 0, 0, 0, bias.data_ptr(), 0, 0, 0
    _over_channels(_cut_of(name, formatted, _bits(pointers)), formatted, *pointers)
    return x if formatted is x else x.copy_(formatted)
