"""Benchmark of Mish and its fused variants against torch's operators and torch.compile; writes Markdown tables.

    PYTHONPATH=. python tools/benchmark_mish.py --sections copy,act,bn,infer --output docs/benchmarks/mish-h200.md
    PYTHONPATH=. python tools/benchmark_mish.py --sections stack,cpu --output docs/benchmarks/mish-h200.md

Needs torch and numpy only. The two calls take less than ten minutes each on a GPU; the second replaces its own sections
in the file and leaves the others. Sections: copy (bandwidth of a copy), act (Mish), bn (batch norm + Mish in training),
infer (bias + Mish in place), stack (a whole CSP-Darknet), cpu (the CPU kernels).

Method: buffers rotate through more than 256 MB, so that no input is in the cache. The GPU is kept busy until everything
is queued, so that it never waits for a launch. Times are medians. Percentages are relative to the bandwidth of a copy,
for the bytes that an ideal implementation moves: each tensor is read or written once per pass that needs it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch._functorch.config
import torch.nn.functional as F
from mish_timing import (
    PLANES,
    Bench,
    Call,
    Function,
    Table,
    arguments_of,
    cells_of,
    convolution_share,
    graphed,
    machine,
    merged,
    named,
    prepared,
)
from torch import Tensor, nn

from detector.models.activations import Activation, ActivationConfig, LeakyReLU, Linear, Mish
from detector.models.backbones import CSPDarknet
from detector.models.blocks import ConvNormAct, Scale
from detector.models.folding import fold
from detector.ops import cpu
from detector.ops.mish import mish, sigmoid_form
from detector.ops.norm_mish import bias_mish_, norm_mish

SECTIONS = ("copy", "act", "bn", "infer", "stack", "cpu")
LAST = torch.channels_last


class TorchMish(Activation):
    """torch's own Mish, for comparison; no fused path recognises it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return Mish of x."""
        return F.mish(x)


def composite(x: Tensor) -> Tensor:
    """Return Mish by three operators, each of which rounds and saves its result."""
    return x * torch.tanh(F.softplus(x))


def chained(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return batch norm, then Mish, by one operator after the other."""
    return lambda x: second(first(x))


def fused(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None) -> Tensor:
    """Return batch norm + Mish by one operation."""
    return norm_mish(x, norm, residual)


def in_place(bias: Tensor, x: Tensor, residual: Tensor | None) -> Tensor:
    """Return bias + Mish by one operation."""
    return bias_mish_(x, bias, residual)


def with_residual(function: Callable[[Tensor], Tensor]) -> Function:
    """Return the function of x, plus a residual if there is one."""

    def added(x: Tensor, residual: Tensor | None) -> Tensor:
        y = function(x)
        return y if residual is None else residual + y

    return added


def cases(bench: Bench) -> list[tuple[tuple[int, int, int, int], torch.dtype, torch.memory_format]]:
    """Yield the shapes in bfloat16 channels_last, the first two also in NCHW, float32 and float16."""
    found = [(shape, torch.bfloat16, LAST) for shape in bench.shapes]
    found += [(shape, torch.bfloat16, PLANES) for shape in bench.shapes[:2]]
    return found + [(shape, dtype, LAST) for shape in bench.shapes[1:2] for dtype in (torch.float32, torch.float16)]


def measure_training(
    bench: Bench,
    table: Table,
    case: str,
    variants: dict[str, Function],
    make: Callable[[], tuple[Tensor, Tensor | None]],
    norm: nn.BatchNorm2d | None,
    passes: tuple[int, int],
) -> None:
    """Time forward and backward of variants and check their gradients against the first one in float64.

    Args:
        bench: the machine.
        table: table that gets a row for each variant.
        case: the first cell of the rows.
        variants: functions of x and a residual; those whose name begins with compile are compiled.
        make: function that returns fresh arguments.
        norm: batch norm that the functions use and whose gradients are checked too, or None.
        passes: number of times that an ideal forward and backward moves a tensor of the size of x.
    """
    x, residual = make()
    own = [] if norm is None else list(norm.parameters())
    num_bytes = x.numel() * x.element_size()
    grad = torch.randn_like(x)
    wanted: tuple[Tensor, ...] = ()
    if num_bytes < 64 * 2**20:  # float64 takes too long for the largest tensors
        wide = x.double().requires_grad_()
        if norm is not None:
            norm.double()
        shortcut = None if residual is None else residual.double()
        wanted = torch.autograd.grad(next(iter(variants.values()))(wide, shortcut), [wide, *own], grad.double())
        if norm is not None:
            norm.float()
    sets = [(x, residual), *(make() for _ in range(bench.sets_of(2 * num_bytes) - 1))]
    for some_x, _ in sets:
        some_x.requires_grad_()
    for name, function in variants.items():
        run = prepared(bench, name, function)
        if run is None:
            continue
        forward = bench.seconds([partial(run, *arguments) for arguments in sets])
        pulls = [
            partial(torch.autograd.grad, run(*arguments), [arguments[0], *own], grad, retain_graph=True)
            for arguments in sets
        ]
        backward = bench.seconds(pulls)
        del pulls
        memory = bench.memory(partial(run, x, residual), lambda y: torch.autograd.grad(y, [x, *own], grad))
        found = torch.autograd.grad(run(x, residual), [x, *own], grad)
        pairs = () if name == "BN only" else zip(found, wanted, strict=False)  # its gradients differ
        errors = [((f.double() - w).abs().max() / w.abs().max()).item() for f, w in pairs]
        cells = cells_of(bench, (forward, backward), [num_bytes * number for number in passes])
        table.add(
            case,
            name,
            *cells,
            *("-" if m != m else f"{m / num_bytes:.2f}" for m in memory),
            ", ".join(f"{e:.0e}" for e in errors),
        )


TRAINING_COLUMNS = ("fwd us", "GB/s", "% copy", "bwd us", "GB/s", "% copy", "saved / x", "peak / x", "gradient errors")


def section_copy(bench: Bench) -> str:
    """Measure the bandwidth of a copy, reading and writing."""
    table = Table("copy", "us", "GB/s")
    for num_bytes in (2**20,) if bench.smoke else (256 * 2**20, 2**30):
        source = [torch.ones(num_bytes // 4, device=bench.device) for _ in range(bench.sets_of(2 * num_bytes))]
        seconds = bench.seconds([partial(torch.empty_like(source[0]).copy_, s) for s in source])
        bench.copy_bytes_s = 2 * num_bytes / seconds
        table.add(f"{num_bytes / 2**20:.0f} MiB", f"{seconds * 1e6:.0f}", f"{bench.copy_bytes_s / 1e9:.0f}")
    return str(table)


def section_act(bench: Bench) -> str:
    """Measure Mish alone, and the time of the processor that queues a call."""
    table = Table("tensor", "variant", *TRAINING_COLUMNS)
    formulas: dict[str, Callable[[Tensor], Tensor]] = {"F.mish": F.mish, "x * tanh(softplus(x))": composite}
    formulas |= {"compile(F.mish)": F.mish, "compile(one exp)": sigmoid_form, "ours": mish}
    variants = {name: with_residual(formula) for name, formula in formulas.items()}
    for shape, dtype, layout in cases(bench):
        if layout == LAST:  # NCHW is the same memory
            make = partial(arguments_of, bench, shape, dtype, layout, False)
            measure_training(bench, table, named(shape, dtype, layout), variants, make, None, (2, 3))
    cost = Table("call", "no_grad us", "with grad us")
    x = torch.randn(1, 8, 8, 8, device=bench.device)
    for name, function in (("F.mish", F.mish), ("ours", mish)):
        cells = []
        for tracked in (False, True):
            tracked_x = x.clone().requires_grad_(tracked)
            spans = []
            for _ in range(20):
                bench.sync()
                started = time.perf_counter()
                for _ in range(100):
                    function(tracked_x)
                spans.append((time.perf_counter() - started) / 100)
            cells.append(f"{min(spans) * 1e6:.1f}")
        cost.add(name, *cells)
    return f"{table}\n\n{cost}"


def section_bn(bench: Bench) -> str:
    """Measure batch norm + Mish in training, without and with a shortcut."""
    table = Table("tensor", "variant", *TRAINING_COLUMNS)
    for shape, dtype, layout in cases(bench):
        norm = nn.BatchNorm2d(shape[1], device=bench.device)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        eager = with_residual(chained(norm, F.mish))
        variants = {"BN, F.mish": eager, "BN only": with_residual(norm), "compile(BN, F.mish)": eager}
        variants["compile(BN, one exp)"] = with_residual(chained(norm, sigmoid_form))
        variants["ours"] = partial(fused, norm)
        for shortcut in (False, True) if shape in bench.shapes[1:4] else (False,):
            case = named(shape, dtype, layout) + (" + shortcut" if shortcut else "")
            make = partial(arguments_of, bench, shape, dtype, layout, shortcut)
            measure_training(bench, table, case, variants, make, norm, (4 if shortcut else 3, 5))
    return str(table)


def section_infer(bench: Bench) -> str:
    """Measure bias + Mish of a folded network, without and with a shortcut."""
    table = Table("tensor", "variant", "us", "GB/s", "% copy")
    for shape, dtype, layout in cases(bench):
        for shortcut in (False, True) if shape in bench.shapes[1:4] else (False,):
            x, _ = arguments_of(bench, shape, dtype, layout, False)
            num_bytes = x.numel() * x.element_size()
            bias = torch.randn(shape[1], device=bench.device)
            add = partial(torch.add, bias.to(dtype)[:, None, None])
            num_sets = bench.sets_of(num_bytes * (1 + shortcut))
            sets = [arguments_of(bench, shape, dtype, layout, shortcut) for _ in range(num_sets)]
            eager = with_residual(chained(add, F.mish))
            variants = {"add, F.mish": eager, "compile(add, F.mish)": eager}
            variants["compile(add, one exp)"] = with_residual(chained(add, sigmoid_form))
            variants["ours, in place"] = partial(in_place, bias)
            for name, function in variants.items():
                run = prepared(bench, name, function)
                if run is None:
                    continue
                with torch.no_grad():
                    seconds = bench.seconds([partial(run, *arguments) for arguments in sets])
                case = named(shape, dtype, layout) + (" + shortcut" if shortcut else "")
                table.add(case, name, *cells_of(bench, [seconds], [num_bytes * (2 + shortcut)]))
    return str(table)


def backbone(bench: Bench, activation: ActivationConfig | None, layout: torch.memory_format) -> CSPDarknet:
    """Return a CSP-Darknet of width and depth 1; without an activation it has torch's Mish, which is never fused."""
    size = 0.125 if bench.smoke else 1.0
    model = CSPDarknet(CSPDarknet.Config(), Scale(size, size, activation=activation or Mish.Config()), 3)
    if activation is None:
        for block in model.modules():
            if isinstance(block, ConvNormAct):
                block.activation = TorchMish(Mish.Config())
    return model.to(bench.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]  # its stub lacks this


def section_stack(bench: Bench) -> str:
    """Measure a backbone: training step and folded inference."""
    batch, side = (1, 64) if bench.smoke else (16, 608)
    table = Table("network", "train ms", "peak GiB", "of it convolutions %", f"infer {batch} ms", "infer 1, graph ms")
    half, full = torch.bfloat16, torch.float32
    variants: list[tuple[str, ActivationConfig | None, torch.dtype, torch.memory_format]] = [
        ("ours", Mish.Config(), half, LAST),
        ("BN, F.mish", None, half, LAST),
        ("BN, LeakyReLU", LeakyReLU.Config(), half, LAST),
        ("BN, identity", Linear.Config(), half, LAST),
        ("compile(BN, F.mish)", None, half, LAST),
        ("compile(BN, one exp)", Mish.Config(), half, LAST),
        ("ours, NCHW", Mish.Config(), half, PLANES),
        ("BN, F.mish, NCHW", None, half, PLANES),
        ("ours, float32", Mish.Config(), full, LAST),
        ("BN, F.mish, float32", None, full, LAST),
    ]
    for name, activation, dtype, layout in variants:
        torch.manual_seed(0)
        model = backbone(bench, activation, layout)
        run = prepared(bench, name, model)
        if run is None:
            continue
        images = torch.rand(batch, 3, side, side, device=bench.device).contiguous(memory_format=layout)
        cast = partial(torch.autocast, bench.device.type, dtype, enabled=dtype != full)
        with cast():
            grads = [torch.randn_like(y) for y in run(images)]

        def step() -> None:
            with cast():  # noqa: B023 - called within this turn of the loop
                maps = run(images)  # noqa: B023 - likewise
            torch.autograd.backward(maps, grads)  # noqa: B023 - likewise
            model.zero_grad(set_to_none=True)  # noqa: B023 - likewise

        train = bench.seconds([step])
        peak, share = "-", "-"
        if bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(bench.device)
            step()
            peak = f"{torch.cuda.max_memory_allocated(bench.device) / 2**30:.2f}"
            share = f"{100 * convolution_share(step):.0f}"
        infer = ["-", "-"]
        if not name.startswith("compile"):
            with torch.no_grad():
                folded = fold(model).to(dtype)
                for i, image in enumerate((images.to(dtype), images[:1].to(dtype).contiguous(memory_format=layout))):
                    infer[i] = f"{bench.seconds([graphed(bench, partial(folded, image), i == 1)]) * 1e3:.2f}"
        table.add(name, f"{train * 1e3:.2f}", peak, share, *infer)
    return str(table)


def section_cpu(bench: Bench) -> str:
    """Measure the CPU kernels, with preallocated results, on one thread and on two."""
    num = 2**16 if bench.smoke else 11_829_248  # 2 x 64 x 304 x 304
    table = Table("operation", "dtype", "threads", "torch ms", "SiLU ms", "ours ms", "torch / ours")
    kept, here = torch.get_num_threads(), Bench(torch.device("cpu"), 7, bench.smoke, False, bench.stops_at)
    operators = torch.ops.aten
    for dtype in (torch.float32, torch.bfloat16):
        x, grad = (torch.randn(num).mul_(2).to(dtype) for _ in range(2))
        out = torch.empty_like(x)
        image = x[: num // 4096 * 4096].view(1, -1, 64, 64).contiguous(memory_format=LAST)
        norms = {name: nn.BatchNorm2d(image.shape[1]) for name in ("torch", "silu", "ours")}
        trained = image.requires_grad_()

        def train(function: Callable[[Tensor], Tensor]) -> None:
            torch.autograd.grad(function(trained), trained, trained.detach())  # noqa: B023 - called in this turn

        rows: dict[str, list[Call]] = {
            "forward": [
                partial(operators.mish.out, x, out=out),
                partial(operators.silu.out, x, out=out),
                partial(cpu.mish_forward_out, x, out),
            ],
            "backward": [
                partial(operators.mish_backward, grad, x),  # torch has no such operator that writes into a given tensor
                partial(operators.silu_backward.grad_input, grad, x, grad_input=out),
                partial(cpu.mish_backward_out, grad, x, out),
            ],
            "BN + Mish, both ways": [
                partial(train, chained(norms["torch"], F.mish)),
                partial(train, chained(norms["silu"], F.silu)),
                partial(train, partial(norm_mish, norm=norms["ours"])),
            ],
        }
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, calls in rows.items():
                if not bench.out_of_time():
                    times = [here.seconds([call]) * 1e3 for call in calls]
                    cells = [f"{milliseconds:.2f}" for milliseconds in times]
                    table.add(name, str(dtype)[6:], threads, *cells, f"{times[0] / times[2]:.2f}")
    torch.set_num_threads(kept)
    return str(table)


def main() -> None:
    """Run the sections and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a Markdown file; its other sections are kept")
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each variant")
    parser.add_argument("--seconds", type=float, default=540, help="no variant is started after this time")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to check that everything runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    names = options.sections.split(",")
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"--sections: expected some of {', '.join(SECTIONS)}, got {', '.join(unknown)}")
    stops_at = time.monotonic() + options.seconds
    device = torch.device(options.device)
    bench = Bench(device, options.rounds, options.smoke, not options.no_compile, stops_at)
    torch._functorch.config.donated_buffer = False  # the backward pass runs many times
    run = dict(
        zip(SECTIONS, (section_copy, section_act, section_bn, section_infer, section_stack, section_cpu), strict=True)
    )
    if "copy" not in names and {"act", "bn", "infer"} & set(names):
        section_copy(bench)
    head, results = machine(bench), {}
    print(head)
    for name in [name for name in SECTIONS if name in names]:
        print(f"\n## {name}\n")
        results[name] = f"{run[name].__doc__}\n\n{run[name](bench)}"
        if bench.out_of_time():
            results[name] += f"\n\nStopped after {options.seconds:.0f} seconds: what is missing was not begun."
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            existing = options.output.read_text("utf-8") if options.output.exists() else ""
            options.output.write_text(merged(existing, results, head, SECTIONS), "utf-8")


if __name__ == "__main__":
    main()
