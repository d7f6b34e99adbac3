"""Options of `detector predict` for large sets of images; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.common_options import positive
from detector.errors import ConfigError

ENGINES = ("ray",)


def add_parts_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for predictions in parts, on several machines."""
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="write share I of N, I from 0, as Parquet parts into --out; the same command continues; detector results "
        "merge makes one file of them (default: one process, files of --format)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="write all parts with this engine, on this machine or a cluster; needs the extra ray (default: none)",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="--engine: processes (default: one per GPU, or CPU core)"
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="--engine ray: a running cluster (default: this machine)"
    )
    parser.add_argument(
        "--images-per-part",
        type=positive,
        metavar="N",
        help="images in a part (default: about 256 parts, of at most 1,000 images)",
    )


def _shard(text: str) -> tuple[int, int]:
    """Return the two numbers of a share; argparse refuses anything else."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/4, got {text!r:.60}")
    return int(first), int(second)


def has_parts(arguments: argparse.Namespace) -> bool:
    """Tell whether the predictions are written in parts."""
    return arguments.shard is not None or arguments.engine is not None


def check_parts(arguments: argparse.Namespace) -> None:
    """Reject options of parts that have no effect, and parts without a folder.

    Raises:
        ConfigError: a mistake.
    """
    if arguments.engine is None and (arguments.workers or arguments.ray_address):
        raise ConfigError("--workers and --ray-address belong to --engine ray; give it, or leave them out")
    if arguments.engine is not None and arguments.shard is not None:
        raise ConfigError("expected --shard or --engine, got both: the engine shares out all parts; leave one out")
    if not has_parts(arguments):
        if arguments.images_per_part:
            raise ConfigError("--images-per-part belongs to --shard or --engine; give one of them, or leave it out")
        return
    if arguments.out is None:
        raise ConfigError("--shard and --engine: expected the folder of the parts, got none; give --out FOLDER")
    if arguments.format not in (None, ["coco"]):
        raise ConfigError(
            "--format: expected coco or nothing with --shard or --engine, which write Parquet, got "
            f"{','.join(arguments.format)}; leave it out"
        )
