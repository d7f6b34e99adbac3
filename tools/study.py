"""Run `detector study` from a source checkout."""

import sys

from detector.cli.main import run

sys.exit(run(["study", *sys.argv[1:]]))
