"""The same as `detector train`."""

import sys

from detector.cli.main import run

sys.exit(run(["train", *sys.argv[1:]]))
