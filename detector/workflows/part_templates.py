"""Files for parts of one's own: each is a small working part of its kind, to be changed.

The templates are the examples of CONTRIBUTING.md, so what the tests prove for those holds for a new file.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from pathlib import Path

from detector.config import registry
from detector.config.name_suggestions import nearest
from detector.errors import ConfigError

# The words that select a part of each kind, where NAME stands for its registered name.
USES = {
    "activation": "detector train mish-n --import FILE model.activation=NAME",
    "attention": "detector train mish-n --import FILE model.backbone.attention=NAME",
    "augmentation": "detector train mish-n --import FILE augment.extra=[NAME]",
    "backbone": "detector train mish-n --import FILE model.backbone=NAME",
    "classification loss": "detector train classify --import FILE loss=NAME",
    "classifier": "detector train classify --import FILE model=NAME",
    "dataset": "detector train mish-n --import FILE data=DATA.boxes",
    "export target": "detector export best.safetensors --import FILE --to NAME --out best.NAME",
    "head": "detector train mish-n --import FILE model.head=NAME",
    "image set": "detector train classify --import FILE data=NAME",
    "logger": "detector train mish-n --import FILE train.loggers=[NAME]",
    "loss": "detector train mish-n --import FILE model=NETWORK loss=NAME",
    "metric": "detector evaluate best.safetensors --import FILE --metric NAME",
    "model": "detector train mish-n --import FILE model=NAME",
    "neck": "detector train mish-n --import FILE model.neck=NAME",
    "optimizer": "detector train mish-n --import FILE optimizer=NAME",
    "schedule": "detector train mish-n --import FILE schedule=NAME",
    "task": "detector train MY.yaml --import FILE    # where MY.yaml has the line task: NAME",
}
# Other kinds that a part needs, because it names one of them as its default.
_COMPANIONS = {"head": ("loss",), "model": ("loss",)}
_EXAMPLE = "toy"  # the name of every example
_IMPORT = re.compile(r"(from|import) ")
_FUTURE = "from __future__ import annotations\n"


def write_template(kind: str, path: Path) -> str:
    """Write a file with a part of a kind, registered under the name of the file.

    Args:
        kind: a key of `USES`; words may be joined by hyphens or underscores.
        path: the new file, such as `my_backbone.py`.

    Returns:
        The command that uses the part.

    Raises:
        ConfigError: there is no such kind, the name cannot be used or is taken, or the file exists or cannot be
            written.
    """
    kind = re.sub(r"[-_\s]+", " ", kind.strip().lower())
    if kind not in USES:
        raise ConfigError(f"expected a kind of part, got {kind!r}{nearest(kind, USES)}")
    name = path.stem
    if path.suffix != ".py" or not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"{path}: expected a file such as my_{kind.replace(' ', '_')}.py, whose name the part gets")
    kinds = {registry.label_of(known): known for known in registry.every_kind()}
    for each in (kind, *_COMPANIONS.get(kind, ())):
        if each in kinds and name in registry.names(kinds[each]):
            raise ConfigError(f"{path}: the {each} {name!r} exists already; choose another file name")
    others = [_part(each, name, _camel(f"{name}_{each}")) for each in _COMPANIONS.get(kind, ())]
    parts = [*others, _part(kind, name, _camel(name))]
    text = parts[0] if len(parts) == 1 else _joined(parts)
    use = USES[kind].replace("FILE", str(path)).replace("NAME", name)
    text = f'"""Part of kind {kind}; use it with\n\n    {use}\n"""\n\n{_FUTURE}{text}'
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already and is not overwritten; choose another name") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another folder") from error
    return use


def templates_dir() -> Path:
    """Return the folder of the examples: inside the installed package, or `tests/parts/` of a source checkout."""
    package = Path(__file__).parents[1]
    packed = package / "templates"
    return packed if packed.is_dir() else package.parent / "tests" / "parts"


def _part(kind: str, name: str, class_name: str) -> str:
    """Return the text of an example behind its first import, with the names of a new part."""
    text = (templates_dir() / f"toy_{kind.replace(' ', '_')}.py").read_text(encoding="utf-8").partition(_FUTURE)[2]
    (old,) = re.findall(r'^@register\("toy"\)\nclass (\w+)', text, re.MULTILINE)
    if re.search(rf"\b{class_name}\b", text):  # a name that the example imports
        class_name = f"Own{class_name}"
    return re.sub(rf"\b{_EXAMPLE}\b", name, re.sub(rf"\b{old}\b", class_name, text))


def _camel(words: str) -> str:
    """Return words between spaces or underscores as the name of a class."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[ _]", words))


def _joined(texts: Sequence[str]) -> str:
    """Return parts as one text, with the imports of all of them, each once, at its beginning."""
    whole, names, bodies = dict[str, None](), dict[str, set[str]](), []
    for text in texts:
        lines = text.splitlines(keepends=True)
        first = next(number for number, line in enumerate(lines) if line.strip() and not _IMPORT.match(line))
        for line in map(str.strip, lines[:first]):
            if (found := re.fullmatch(r"from (\S+) import (.+)", line)) is not None:
                names.setdefault(found[1], set()).update(found[2].split(", "))
            elif line:
                whole[line] = None
        bodies.append("".join(lines[first:]))
    imports = [*whole, *(f"from {module} import {', '.join(sorted(of))}" for module, of in sorted(names.items()))]
    return "\n".join(["", *imports, "", "", "\n\n".join(bodies)])
