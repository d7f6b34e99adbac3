"""Hooks of MkDocs: pages from files outside docs/, from the commands and from the notebooks, and links between them.

`make docs` runs MkDocs with `mkdocs.yml`, which names this file. The documents link to each other as files of the
repository; `on_page_markdown` turns these links into links between pages. A link to another file of the repository,
such as a source file, becomes plain text.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from detector.cli.main import COMMANDS, EXIT_CODES, actions_of, build_parser  # noqa: E402

# Documents outside docs/ and their pages.
OUTSIDE = {
    "README.md": "index.md",
    "data/README.md": "data.md",
    "weights/README.md": "models.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
# Pages of the reference of Python: title, first paragraph, objects.
API_PAGES = {
    "api/detector.md": (
        "Detector and Classifier",
        "`from detector import Detector, Classifier`. [Python](../guides/python.md) has examples.",
        ("detector.api.Detector", "detector.api.Classifier"),
    ),
    "api/results.md": (
        "Results",
        "What the methods of `Detector` return.",
        (
            "detector.inference.shown_results.ImageDetections",
            "detector.structures.types.Detections",
            "detector.inference.predictor.Prediction",
            "detector.inference.prediction_summary.PredictionSummary",
            "detector.workflows.train.TrainingResult",
            "detector.workflows.export.ExportReport",
        ),
    ),
    "api/parts.md": (
        "Parts",
        "Contracts of the parts that you can add. [Contributing](../contributing.md) lists the kinds; `detector new` "
        "writes a working example of each.",
        (
            "detector.config.registry.register",
            "detector.models.activations.activation.Activation",
            "detector.models.backbones.Backbone",
            "detector.models.necks.Neck",
            "detector.models.heads.Head",
            "detector.models.attention.Attention",
            "detector.models.contracts.TrainableModel",
            "detector.models.contracts.DetectionModel",
            "detector.losses.loss.Loss",
            "detector.data.dataset.Dataset",
            "detector.data.classification_split.ImageSet",
            "detector.data.augment.augmentation.Augmentation",
            "detector.export.export_target.ExportTarget",
            "detector.training.logger.Logger",
            "detector.evaluation.detection_metric.DetectionMetric",
            "detector.tasks.task.Task",
        ),
    ),
    "api/errors.md": (
        "Errors",
        "Every error that an input can cause is a `DetectorError`; each kind has its own exit code.",
        ("detector.errors",),
    ),
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


# --- hooks -----------------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files in docs/."""
    from mkdocs.structure.files import File

    made = {uri: (ROOT / source).read_text(encoding="utf-8") for source, uri in OUTSIDE.items()}
    made["commands.md"] = command_page()
    made |= {uri: "\n\n".join(api_lines(uri)) for uri in API_PAGES}
    for path in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        made[f"notebooks/{path.stem}.md"] = notebook_page(path)
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri
    source = next((name for name, made in OUTSIDE.items() if made == uri), f"docs/{uri}")
    return relinked(markdown, source, uri)


# --- links -----------------------------------------------------------------------------------------------------------


def relinked(markdown: str, source: str, uri: str) -> str:
    """Return a document with its links between files of the repository as links between pages.

    Args:
        markdown: the document.
        source: its path in the repository.
        uri: the path of its page in docs/.
    """

    def page_link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        page = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), uri)
        if page is None:
            return text
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({relative}{'#' if anchor else ''}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(page_link, part) for part in parts)


def page_of(path: str, uri: str) -> str | None:
    """Return the page, below docs/, of a file of the repository; None for a file without one."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if not path.startswith("docs/") or (not (ROOT / path).exists() and not path.startswith("docs/api/")):
        return path.removeprefix("docs/") if path.removeprefix("docs/") in (*OUTSIDE.values(), "commands.md") else None
    is_download = uri.startswith("notebooks/")  # the page of a notebook links to the notebook itself
    if path.endswith(".ipynb") and not is_download:
        return f"{path.removeprefix('docs/').removesuffix('.ipynb')}.md"
    return path.removeprefix("docs/")


# --- pages -----------------------------------------------------------------------------------------------------------


def api_lines(uri: str) -> Iterator[str]:
    """Yield the paragraphs of a page of the reference of Python, for mkdocstrings."""
    title, first, names = API_PAGES[uri]
    yield f"# {title}"
    yield first
    yield from (f"::: {name}" for name in names)


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its texts, and its code in blocks."""
    book = json.loads(path.read_text(encoding="utf-8"))
    parts = []
    for cell in book["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download the notebook]({path.name}); this page shows its cells.")
    return "\n\n".join(parts)


def command_page() -> str:
    """Return the reference of all commands, from their parsers."""
    lines = [
        "# Commands",
        "",
        "Options and words may come in any order. `detector COMMAND --help` prints the same. A word `key=value` sets a "
        "[key of the configuration](reference/README.md).",
        "",
        "Every command has these options:",
        "",
        *_option_table(_common_actions()),
        "",
        f"{EXIT_CODES[:1].upper()}{EXIT_CODES[1:]}.".replace("\n", " "),
    ]
    for name, (_, summary) in COMMANDS.items():
        lines += ["", f"## `detector {name}`", "", f"{summary[:1].upper()}{summary[1:]}.", ""]
        if not summary.startswith("the same as"):
            lines += _command_lines(name)
    return "\n".join(lines) + "\n"


def _common_actions() -> list[argparse.Action]:
    shared = {option for option in _options("models") if option in _options("env")}
    return [action for action in actions_of(build_parser(["env"]), "env") if set(action.option_strings) & shared]


def _options(name: str) -> set[str]:
    return {option for action in actions_of(build_parser([name]), name) for option in action.option_strings} - {
        "--json"
    }


def _command_lines(name: str) -> Iterator[str]:
    """Yield the examples and the options of a command."""
    parser = build_parser([name])
    common = {option for action in _common_actions() for option in action.option_strings}
    own = [action for action in actions_of(parser, name) if not set(action.option_strings) & common]
    examples = re.search(r"examples:\n(.*?)\n\n", _subparser(parser, name).epilog or "", re.DOTALL)
    if examples:
        yield from ("```", *(line.strip() for line in examples[1].splitlines()), "```", "")
    for group in _subparser(parser, name)._action_groups:
        actions = [action for action in group._group_actions if action in own]
        if actions:
            is_plain = group.title in ("positional arguments", "options")
            yield from () if is_plain else (f"{(group.title or '')[:1].upper()}{(group.title or '')[1:]}:", "")
            yield from (*_option_table(actions), "")


def _subparser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    chosen: argparse.ArgumentParser = subparsers.choices[name]
    return chosen


def _option_table(actions: list[argparse.Action]) -> Iterator[str]:
    yield from ("| option | meaning |", "|---|---|")
    for action in actions:
        meaning = (action.help or "").replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
        yield f"| {_written(action)} | {meaning} |"


def _written(action: argparse.Action) -> str:
    """Return an option as it is written on the command line."""
    value = action.metavar if isinstance(action.metavar, str) else (action.dest or "").upper()
    if action.choices is not None and action.metavar is None:
        value = "\\|".join(map(str, action.choices))
    if not action.option_strings:
        return f"`{value}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)
