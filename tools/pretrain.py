"""Make `weights/mish-n-drawn.safetensors`: mish-n pre-trained on drawn pictures, in float16.

    python tools/pretrain.py                        # less than an hour on one core
    python tools/pretrain.py --run runs/detect/pretrain    # only write the file, from a finished run

The training is that of `detector train pretrain`; words with `=` change it. The pictures are drawn by
`detector.data.drawn_pictures`, so no photograph and no licence of others is involved.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from detector.cli.main import run
from detector.data.drawn_pictures import GENERATOR_VERSION
from detector.models.checkpoint import load_model_file, save_model
from detector.models.published_weights import DRAWN_START, run_weights

TARGET = Path(__file__).resolve().parents[1] / "weights" / f"{DRAWN_START}.safetensors"
RUN = Path("runs/detect/pretrain")
OWN_SECTIONS = ("train", "data", "loader")  # they name folders of this machine
MAX_BYTES = 5_000_000


def write_start(folder: Path, target: Path) -> None:
    """Write the averaged weights of a run in float16, without the settings that name folders.

    Raises:
        CheckpointError: the run has no weights, or they cannot be read or written.
        ValueError: the file has more than `MAX_BYTES` bytes.
    """
    file = load_model_file(run_weights(folder) or folder)
    state = {name: t.half() if t.dtype == torch.float32 else t for name, t in file.state.items()}
    config = {key: value for key, value in file.config.items() if key not in OWN_SECTIONS}
    provenance = {
        "source": "detector train pretrain",
        "licence": "Apache-2.0",
        "trained_on": f"drawn pictures, version {GENERATOR_VERSION} of the generator; no photographs",
        "changes": "stored in float16",
    }
    written = dataclasses.replace(file, config=config, state=state, provenance=provenance)
    save_model(target, written)
    num_bytes = target.stat().st_size
    if num_bytes > MAX_BYTES:
        raise ValueError(f"{target}: expected at most {MAX_BYTES} bytes, got {num_bytes}; give a smaller model")
    print(f"{target}: {num_bytes / 1e6:.2f} MB")


def main(words: Sequence[str] | None = None) -> int:
    """Train if no run is given, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the training")
    parser.add_argument("--run", type=Path, help="the folder of a finished run, which is not trained again")
    parser.add_argument("--to", type=Path, default=TARGET, help="the file to write")
    arguments = parser.parse_args(words)
    if arguments.run is None and (code := run(["train", "pretrain", *arguments.overrides, "--out", str(RUN)])):
        return code
    write_start(arguments.run or RUN, arguments.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
