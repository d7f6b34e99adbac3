"""Options for several views of each image, the same in every command that runs a detector."""

from __future__ import annotations

import argparse

from detector.errors import ConfigError
from detector.inference.views import ViewsConfig


def view_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the options that were given as overrides of the experiment."""
    names = ("tile", "overlap", "merge")
    overrides = [f"views.{name}={getattr(arguments, name)}" for name in names if getattr(arguments, name) is not None]
    if arguments.scales is not None:
        overrides.append(f"views.scales=[{arguments.scales}]")
    if arguments.flip:
        overrides.append("views.flip=true")
    if arguments.no_whole:
        overrides.append("views.whole=false")
    return overrides


def require_effect(arguments: argparse.Namespace, views: ViewsConfig) -> None:
    """Reject options that have no effect.

    Args:
        arguments: of any command; those of a command without these options are accepted.
        views: the views from the configuration of the model and the command line.

    Raises:
        ConfigError: an option has no effect.
    """
    given = {name: getattr(arguments, name, None) for name in ("overlap", "no_whole", "merge")}
    if views.tile is None and (given["overlap"] is not None or given["no_whole"]):
        raise ConfigError("--overlap and --no-whole belong to images in tiles; give --tile PX, or leave them out")
    if views.is_plain and given["merge"] is not None:
        raise ConfigError("--merge belongs to several views; give --tile, --flip or --scales, or leave it out")
