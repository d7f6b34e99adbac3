"""Rejection of options that have no effect."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from detector.cli.main import build_parser
from detector.errors import ConfigError


def refuse_given(arguments: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Reject options that differ from their defaults.

    Args:
        arguments: the parsed command line.
        names: the options as attributes of `arguments`.
        reason: the expected and the actual case, for the message.

    Raises:
        ConfigError: such an option was given.
    """
    defaults = vars(build_parser([arguments.command]).parse_args([arguments.command]))
    if given := [name for name in names if getattr(arguments, name) != defaults[name]]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options}: {reason}; leave it out")
