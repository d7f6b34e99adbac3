"""Run `detector train` from a source checkout."""

import sys

from detector.cli.main import run

sys.exit(run(["train", *sys.argv[1:]]))
