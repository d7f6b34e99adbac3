"""The same as `detector study`."""

import sys

from detector.cli.main import run

sys.exit(run(["study", *sys.argv[1:]]))
