"""The same as `detector predict`."""

import sys

from detector.cli.main import run

sys.exit(run(["predict", *sys.argv[1:]]))
