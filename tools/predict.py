"""Run `detector predict` from a source checkout."""

import sys

from detector.cli.main import run

sys.exit(run(["predict", *sys.argv[1:]]))
