"""Options that were given although they say nothing: refused, never ignored."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from detector.cli.main import build_parser
from detector.errors import ConfigError


def refuse_given(arguments: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Refuses options that differ from their defaults.

    Args:
        arguments: of the command line, which names its command.
        names: the options as attributes of `arguments`.
        reason: whom they are for and what was found instead, for the message.

    Raises:
        ConfigError: such an option was given.
    """
    defaults = vars(build_parser([arguments.command]).parse_args([arguments.command]))
    if given := [name for name in names if getattr(arguments, name) != defaults[name]]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options}: {reason}; leave it out")
