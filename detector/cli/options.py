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


# Options that every command and every task has.
_COMMON = frozenset({"words", "command", "quiet", "verbose", "debug", "imports", "weights", "strict", "json"})


def refuse_unsupported(arguments: argparse.Namespace, supported: frozenset[str] | None, product: str) -> None:
    """Reject options that the task of a model file does not support.

    Args:
        arguments: the parsed command line.
        supported: the options that the task supports, as attributes of `arguments`; None for all.
        product: the model of the task in one word, such as classifier.

    Raises:
        ConfigError: an unsupported option was given.
    """
    if supported is not None:
        names = [name for name in vars(arguments) if name not in _COMMON | supported]
        refuse_given(arguments, names, f"not supported by a {product}")
