"""`detector completion`: scripts for bash, zsh and fish, made from the parsers and the table of keys."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from detector.cli.main import COMMANDS, WITH_OVERRIDES, actions_of, build_parser
from detector.config.key_table import key_table
from detector.config.nodes import presets_dir

_WITH_PRESETS = ("train", "benchmark")


@dataclass(frozen=True)
class _Command:
    """Words and options that can follow a command.

    Attributes:
        summary: its line of help.
        options: the option strings, each with its choices, whether it takes a value, and its help.
        names: presets and other words.
        keys: the keys of overrides, each with an equals sign.
    """

    summary: str
    options: tuple[tuple[str, tuple[str, ...], bool, str], ...]
    names: tuple[str, ...]
    keys: tuple[str, ...]


def run(arguments: argparse.Namespace) -> int:
    """Print the script; return the exit code."""
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.words[0]]
    print("\n".join(script(_commands())))
    return 0


def _commands() -> dict[str, _Command]:
    parser = build_parser(COMMANDS)
    keys = tuple(f"{path}=" for path, found in key_table().paths().items() if not any(key.section for key in found))
    presets = tuple(sorted(path.stem for path in presets_dir().glob("*.yaml")))
    words = {"config": tuple(key.rstrip("=") for key in keys), "completion": ("bash", "zsh", "fish")}
    return {
        name: _Command(
            summary,
            tuple(
                (option, tuple(map(str, action.choices or ())), action.nargs != 0, action.help or "")
                for action in actions_of(parser, name)
                for option in action.option_strings
            ),
            presets if name in _WITH_PRESETS else words.get(name, ()),
            keys if name in WITH_OVERRIDES else (),
        )
        for name, (_, summary) in COMMANDS.items()
    }


def _bash(commands: dict[str, _Command]) -> Iterator[str]:
    yield "_detector() {"
    yield '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" words="" options=""'
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'        words="{" ".join(commands)}"'
    yield "    else"
    yield '        case "${COMP_WORDS[1]} $previous" in'
    for name, command in commands.items():
        for option, choices, _, _ in command.options:
            if choices:
                values = " ".join(choices)
                yield f'        "{name} {option}") COMPREPLY=($(compgen -W "{values}" -- "$current")); return ;;'
    yield "        esac"
    yield '        case "${COMP_WORDS[1]}" in'
    for name, command in commands.items():
        options = " ".join(option for option, _, _, _ in command.options)
        yield f'        {name}) options="{options}" words="{" ".join((*command.names, *command.keys))}" ;;'
    yield "        esac"
    yield "    fi"
    yield '    case "$current" in -*) words="$options" ;; esac'
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield '    case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac'
    yield "}"
    yield "complete -o bashdefault -o default -F _detector detector"


def _zsh(commands: dict[str, _Command]) -> Iterator[str]:
    yield "#compdef detector"
    yield "_detector() {"
    yield f"    if (( CURRENT == 2 )); then compadd -- {' '.join(commands)}; return; fi"
    yield '    case "$words[2] $words[CURRENT-1]" in'
    for name, command in commands.items():
        for option, choices, _, _ in command.options:
            if choices:
                yield f'    "{name} {option}") compadd -- {" ".join(choices)}; return ;;'
    yield "    esac"
    yield "    case $words[2] in"
    for name, command in commands.items():
        yield f"    {name})"
        options = " ".join(option for option, _, _, _ in command.options)
        yield f"        if [[ $PREFIX == -* ]]; then compadd -- {options}; return; fi"
        if command.names:
            yield f"        compadd -- {' '.join(command.names)}"
        if command.keys:
            yield f"        compadd -S '' -- {' '.join(command.keys)}"
        yield "        ;;"
    yield "    esac"
    yield "    _files"
    yield "}"
    yield "compdef _detector detector"


def _fish(commands: dict[str, _Command]) -> Iterator[str]:
    for name, command in commands.items():
        yield f"complete -c detector -n __fish_use_subcommand -f -a {name} -d {shlex.quote(command.summary)}"
        seen = f"complete -c detector -n '__fish_seen_subcommand_from {name}'"
        for option, choices, takes_value, text in command.options:
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            value = f" -x -a '{' '.join(choices)}'" if choices else " -r" if takes_value else ""
            yield f"{seen} {kind}{value} -d {shlex.quote(text.partition('(default')[0].strip())}"
        if command.names or command.keys:
            yield f"{seen} -a '{' '.join((*command.names, *command.keys))}'"
