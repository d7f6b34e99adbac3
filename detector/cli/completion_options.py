"""Options of `detector completion`; importing them loads no library."""

from __future__ import annotations

import argparse

from detector.cli.usage import require_one
from detector.config.name_suggestions import nearest
from detector.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    "source <(detector completion bash)    # in ~/.bashrc",
    "source <(detector completion zsh)     # in ~/.zshrc, after compinit",
    "detector completion fish | source     # in ~/.config/fish/config.fish",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("words", nargs="*", metavar="SHELL", help="bash, zsh or fish")


def check(arguments: argparse.Namespace) -> None:
    """Reject a shell without a script.

    Raises:
        ConfigError: a mistake.
    """
    shell = require_one(arguments.words, "shell", "bash, zsh or fish")
    if shell not in SHELLS:
        raise ConfigError(f"no script is made for the shell {shell!r}{nearest(shell, SHELLS)}")
