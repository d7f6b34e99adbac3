"""The parser and the error layer: user errors become one line and an exit code, all other errors a traceback."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO, cast

from detector import __version__
from detector.config.name_suggestions import did_you_mean, near_names, nearest, unknown_key
from detector.errors import ConfigError, DetectorError
from detector.io.announcements import announcing
from detector.io.child_process import safe_path
from detector.io.guarded_stream import GuardedStream

# Name, module and one line of help of each command; a module has `configure(parser)` and `run(arguments) -> exit code`.
COMMANDS = {
    "train": ("train", "train a detector on a COCO-format data set"),
    "evaluate": ("evaluate", "evaluate a trained detector: the 12 COCO metrics and AP per class"),
    "val": ("evaluate", "the same as evaluate"),
    "diagnose": ("diagnose", "say what holds back the AP of a training run, and which key to change first"),
    "compare": ("compare", "compare evaluated runs: metrics, a paired test, deviation over seeds"),
    "study": ("study", "run an experiment over settings and seeds, and report the differences with a test"),
    "tune": ("tune", "search for better settings within a time, and measure them on held-out images"),
    "predict": ("predict", "detect objects in images, videos and live streams"),
    "results": ("results", "merge the parts of a prediction on several machines into one file"),
    "check": ("check", "check a data set: mistakes, duplicates, leaks, statistics, suggestions"),
    "dataset": ("dataset", "convert, split, merge and subset data sets, rename classes; sources are not changed"),
    "labels": ("labels", "find wrong labels, correct them in a new file, label more images: pseudo-labels, ranking"),
    "augment": ("augment", "draw augmented images of a data set, and each augmentation on its own"),
    "models": ("models", "list the model presets with measured parameters and GFLOPs, or describe a model file"),
    "parts": ("parts", "list the registered parts of each kind: backbones, heads, losses, data readers, ..."),
    "config": ("config", "print the configuration keys: type, default, range, meaning, source"),
    "new": ("new", "write a file with a working part of your own, such as a backbone or loss, to be changed"),
    "activations": ("activations", "list the activations by name, draw them with their derivatives"),
    "benchmark": ("benchmark", "compare back ends: latency, throughput, memory"),
    "convert": ("convert", "convert between .safetensors and Darknet's .weights or YOLOX's .pth, both ways"),
    "export": ("export", "export a model to ONNX, OpenVINO, TorchScript or torch.export, and compare the file with it"),
    "serve": ("serve", "answer requests for detections over HTTP, with a page for people"),
    "anchors": ("anchors", "find anchors for a data set by k-means"),
    "download": ("download", "fetch published weights (YOLOX, Darknet) or a data set, by name"),
    "completion": ("completion", "print a script that completes commands, options and keys in bash, zsh or fish"),
    "env": ("env", "show versions, devices and problems of this installation"),
}
EXAMPLES = (
    "detector train mish-n data=data.yaml",
    "detector evaluate runs/detect/train",
    "detector predict runs/detect/train photos/",
)
WITH_OVERRIDES = (
    "train",
    "evaluate",
    "val",
    "predict",
    "export",
    "study",
    "tune",
    "augment",
    "check",
    "anchors",
    "benchmark",
    "serve",
    "labels",
)
# Commands of other programs, and those with their meaning here.
_FOREIGN_COMMANDS = {
    "detect": "predict",
    "infer": "predict",
    "track": "predict WEIGHTS SOURCE --track",
    "test": "evaluate",
    "eval": "evaluate",
    "validate": "evaluate",
    "map": "evaluate --metric darknet",
    "settings": "config",
    "cfg": "config",
    "info": "env",
    "checks": "env",
    "version": "--version",
    "help": "--help",
    "resume": "train --resume RUN",
    "calc_anchors": "anchors",
}
EXIT_CODES = """exit codes: 0 done, 1 runtime error, 2 usage or configuration, 3 data, 4 model file, 5 done with skips
under --strict, 6 training diverged, 130 and 143 stopped by a signal (state saved)"""


class Stopped(BaseException):
    """Request by a signal to end the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class _Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line, without the list of options before it."""

    def error(self, message: str) -> NoReturn:
        """End the process with the exit code of a usage error."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser(chosen: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; only the modules of the chosen ones are imported, for their options."""
    common = _Parser(add_help=False)
    common.add_argument("-q", "--quiet", action="store_true", help="print only results and errors")
    common.add_argument("-v", "--verbose", action="store_true", help="print more messages")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    common.add_argument(
        "--import",
        dest="imports",
        metavar="FILE.py",
        action="append",
        default=[],
        type=Path,
        help="run a Python file that registers parts, so that a configuration can name them",
    )
    parser = _Parser(
        prog="detector",
        description="Train, evaluate and use YOLO-style object detectors on data sets in COCO format.",
        epilog=f"{_examples(EXAMPLES)}{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"detector {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, parents=[common], epilog=EXIT_CODES)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        if name in chosen:
            options = importlib.import_module(f"detector.cli.{module}_options")
            options.configure(command)
            if hasattr(options, "narrow"):
                options.narrow(command, list(chosen))
            command.epilog = f"{_examples(options.EXAMPLES)}{EXIT_CODES}"
    return parser


def _examples(lines: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in lines), "", ""])


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


# Commands whose result is what they print. All others write files, which lost text does not make incomplete.
_PRINTING = frozenset(
    ("compare", "diagnose", "check", "models", "parts", "config", "activations", "benchmark", "anchors", "env")
)


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code.

    What cannot be printed, because the reader of a pipe has gone, a disk is full or an encoding lacks characters, never
    ends the work.
    """
    output, own = GuardedStream(sys.stdout), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", output), cast("TextIO", GuardedStream(sys.stderr))
    try:
        with safe_path():
            code = _run(argv)
        output.flush()  # a closed pipe is noticed here and not at exit
        if output.failure is not None:
            code = _end_without_output(argv[0], output.failure, code)
        return code
    finally:
        sys.stdout, sys.stderr = own
        if output.failure is not None:
            sys.stdout = None  # prevents flushing at exit


def _end_without_output(command: str, failure: Exception, code: int) -> int:
    """Say that text was lost, unless its reader left on purpose; return the exit code."""
    is_lost = command in _PRINTING
    if not isinstance(failure, BrokenPipeError):
        ending = "run the command again" if is_lost else "the files are complete"
        print(f"detector {command}: the output cannot be printed ({_reason(failure)}); {ending}", file=sys.stderr)
    return code or int(is_lost)


def _reason(failure: Exception) -> str:
    return (failure.strerror if isinstance(failure, OSError) else None) or str(failure)


def _run(argv: Sequence[str]) -> int:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise that library asks a package index for updates on import
    parser = build_parser(argv)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        meant = _FOREIGN_COMMANDS.get(argv[0])
        hint = f"; here it is detector {meant}" if meant else nearest(argv[0], COMMANDS)
        parser.error(f"no command is named {argv[0]!r}{hint}")
    arguments = _parse(parser, argv)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    name = f"detector.cli.{COMMANDS[arguments.command][0]}"
    try:
        options = importlib.import_module(f"{name}_options")
        if hasattr(options, "check"):
            options.check(arguments)  # answers mistakes before torch is loaded
        module = importlib.import_module(name)
        if arguments.imports:
            from detector.config.registry import import_parts

            for path in arguments.imports:
                import_parts(path)
        with announcing(lambda text: None if arguments.quiet else print(text, file=sys.stderr, flush=True)):
            return int(module.run(arguments))
    except DetectorError as error:
        if arguments.debug:
            raise
        print(f"detector {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or arguments.debug:
            raise
        print(f"detector {arguments.command}: {error.filename}: the name is too long for a file", file=sys.stderr)
        return ConfigError.exit_code
    except Stopped as stopped:
        return stopped.exit_code


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse words and options in any order, which argparse does not support for subcommands."""
    arguments, rest = parser.parse_known_args(argv)
    words = [word for word in rest if not word.startswith("-") or word == "-"]  # - is stdin
    unknown = [word for word in rest if word not in words]
    if unknown or not hasattr(arguments, "words"):
        if rest:
            parser.prog = f"detector {arguments.command}"
            parser.error(f"unknown argument {(unknown or rest)[0]!r}{_option_hint(parser, arguments, unknown)}")
        return arguments
    arguments.words = [*arguments.words, *words]
    return arguments


def _option_hint(parser: argparse.ArgumentParser, arguments: argparse.Namespace, unknown: Sequence[str]) -> str:
    """Return the end of the message for an option that a command does not have."""
    if not unknown:
        return ""
    option = unknown[0].partition("=")[0]
    if close := near_names(option, options_of(parser, arguments.command)):
        return did_you_mean(close)
    if arguments.command not in WITH_OVERRIDES:
        return ""
    from detector.config.key_table import key_table  # takes longer to import than all options of a command

    paths, key = key_table().paths(), option.lstrip("-").replace("-", "_")
    if key in paths:
        return f"; write {key}=VALUE"
    hint = unknown_key(key, (), paths)
    return "" if "known:" in hint else f"{hint}=VALUE" if hint.startswith("; here it is ") and "=" not in hint else hint


def actions_of(parser: argparse.ArgumentParser, command: str) -> list[argparse.Action]:
    """Return the options and words of a command, except hidden ones."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    own: list[argparse.Action] = subparsers.choices[command]._actions
    return [action for action in own if action.help != argparse.SUPPRESS]


def options_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """Return the options of a command, except hidden ones."""
    return [option for action in actions_of(parser, command) for option in action.option_strings]
