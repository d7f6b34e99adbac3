"""Words of a command line, and their check before torch is loaded; importing this loads no library."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from detector.config.name_suggestions import did_you_mean, near_names
from detector.errors import ConfigError

DATA_HELP = (
    "a data set: a folder or zip with images and annotations, a data.yaml, a .data file, a COCO FILE.json or a CSV "
    "table, optionally with the folder of its images, or shapes"
)


def is_override(word: str) -> bool:
    """Tell whether a word is an override `key=value`, and not an address or an existing file."""
    return "=" in word and "://" not in word.partition("=")[0] and not os.path.exists(word)


def split_words(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the names and the overrides of a command line; `--data` comes first, so that `data.KEY` changes it."""
    names = [word for word in arguments.words if not is_override(word)]
    return names, data_words(arguments, [word for word in arguments.words if is_override(word)])


def require_one(names: Sequence[str], what: str, example: str) -> str:
    """Return the only name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    if len(names) != 1:
        raise ConfigError(f"expected one {what}, got {', '.join(names) or 'none'}; give {example}")
    return names[0]


def check_keys(arguments: argparse.Namespace, overrides: Sequence[str], config_name: str | None = None) -> None:
    """Check the overrides of an experiment as far as possible without the parts; those of `--import` are not known.

    Args:
        arguments: the command line.
        overrides: the overrides.
        config_name: the configuration that they change; None for that of a model file.

    Raises:
        ConfigError: every mistake found.
    """
    if arguments.imports:
        return
    from detector.config.key_check import check_experiment, check_overrides  # loads PyYAML, which help does not need
    from detector.config.key_table import is_current

    if not is_current():
        return

    if config_name is None:
        check_overrides(overrides)
    else:
        check_experiment(config_name, overrides)


def check_model_words(arguments: argparse.Namespace) -> None:
    """Require one model file, and overrides with keys that an experiment may have.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_words(arguments)
    require_one(names, "model file", "best.safetensors")
    check_keys(arguments, overrides)


def data_words(arguments: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """Return the words about a data set; the value of `--data` counts as one, before the keys that change it."""
    data = getattr(arguments, "data", None)
    return [*([] if data is None else [f"data={json.dumps(data)}"]), *words]


def split_data_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of a data set (itself, and for a file also the folder of its images) and the overrides.

    Raises:
        ConfigError: there is not exactly one data set.
    """
    names, overrides = [w for w in words if not is_override(w)], [w for w in words if is_override(w)]
    is_file = bool(names) and Path(names[0]).suffix.lower() in (".json", ".csv", ".tsv")
    if len(names) > 1 + is_file or (not names and not names_data(overrides)):
        raise ConfigError(f"expected one data set, got {', '.join(names) or 'none'}; give {DATA_HELP}")
    return names, overrides


def data_label(overrides: Sequence[str]) -> str:
    """Return the data set that overrides give, in words."""
    return next(each for each in overrides if names_data([each])).removeprefix("data=").strip('"')


def check_data_words(arguments: argparse.Namespace, words: Sequence[str], config_name: str = "base") -> None:
    """Require a data set, given as words or as `data=`, and overrides with known keys.

    Raises:
        ConfigError: a mistake.
    """
    names, overrides = split_data_words(data_words(arguments, words))
    check_keys(arguments, [*(f"data={json.dumps(name)}" for name in names[:1]), *overrides], config_name)


def names_data(overrides: Sequence[str]) -> bool:
    """Tell whether overrides give a data set."""
    return any(override.startswith(("data=", "data.")) for override in overrides)


def require_action(words: Sequence[str], actions: Mapping[str, str]) -> None:
    """Reject a command line whose first word is no action of the command.

    Raises:
        ConfigError: there is no word, or another one.
    """
    if not words or words[0] not in actions:
        got = words[0] if words else "none"
        close = near_names(got, actions)
        meant = did_you_mean(close) if close else ""
        raise ConfigError(f"expected an action, one of {', '.join(actions)}; got {got}{meant}")


def narrow_to_action(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    actions: Mapping[str, str],
    usage: str,
    described: tuple[str, str] | None = None,
) -> None:
    """Describe one action of a command only: hide options of the others, whose help begins with their actions.

    Args:
        parser: the parser of the command.
        words: the command line.
        actions: the meaning of each action.
        usage: usage line, with `{}` for the action.
        described: name and help of the words of every action; None to keep them.
    """
    action = next((word for word in words if word in actions), None)
    if action is None or not {"-h", "--help"} & set(words):
        return
    parser.description, parser.usage = f"{action}: {actions[action]}", usage.format(action)
    known = "|".join(actions)
    for option in parser._actions:
        # "split: ...; rank: ..." gives "", "split", "...", "rank", "...".
        _, *parts = re.split(rf"(?:^|; )((?:{known})\b[^:;]*): ", option.help or "")
        texts = zip(parts[::2], parts[1::2], strict=True)
        owners = {name: text for head, text in texts for name in re.findall(rf"\b(?:{known})\b", head)}
        if option.dest == "words":
            if described is not None:
                option.metavar, option.help = described
        elif owners:
            option.help = owners.get(action, argparse.SUPPRESS)
