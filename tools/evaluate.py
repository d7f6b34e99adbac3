"""Run `detector evaluate` from a source checkout."""

import sys

from detector.cli.main import run

sys.exit(run(["evaluate", *sys.argv[1:]]))
