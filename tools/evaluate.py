"""The same as `detector evaluate`."""

import sys

from detector.cli.main import run

sys.exit(run(["evaluate", *sys.argv[1:]]))
