"""`detector parts`."""

from __future__ import annotations

import argparse
import json

from detector.config import name_suggestions, registry
from detector.errors import ConfigError


def run(arguments: argparse.Namespace) -> int:
    """List the registered parts of each kind and return the exit code."""
    kinds = {registry.label_of(kind): kind for kind in registry.every_kind()}
    for word in arguments.words:
        if word not in kinds:
            raise ConfigError(f"expected a kind of part, got {word!r}{name_suggestions.nearest(word, kinds)}")
    chosen = {label: registry.names(kinds[label]) for label in arguments.words or sorted(kinds)}
    if arguments.json:
        print(json.dumps(chosen))
        return 0
    width = max(map(len, chosen)) + 2
    for label, names in chosen.items():
        print(f"{label:<{width}}{', '.join(names)}")
    return 0
