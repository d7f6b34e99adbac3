"""The registry of parts: a part is a class with a nested `Config`, and its kind is the base class of that config.

    @dataclass(frozen=True)
    class BackboneConfig(PartConfig["Backbone"]):
        folders = ("models",)

    @register("csp_darknet")
    class CSPDarknet(Backbone):
        @dataclass(frozen=True)
        class Config(BackboneConfig):
            width: float = 1.0

        def __init__(self, config: Config, ...) -> None: ...

A kind is a frozen dataclass derived directly from `PartConfig[Contract]`; `folders` names the folders of the package
that hold its parts. The modules in these folders are imported when a part of the kind is first looked up by name, so a
new part is one new file. `build(config, ...)` returns the part that a config belongs to, typed as its contract.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeAlias, TypeGuard, TypeVar, cast

from detector.config.name_suggestions import unknown_name
from detector.errors import ConfigError
from detector.io.folders import absolute

Contract = TypeVar("Contract")
Contract_co = TypeVar("Contract_co", covariant=True)
Part = TypeVar("Part", bound=type)
OwnConfig = TypeVar("OwnConfig", bound="PartConfig[object]")


@dataclass(frozen=True)
class PartConfig(Generic[Contract_co]):
    """Base class of every kind of part; `Contract` is the type of the parts.

    Attributes:
        folders: the folders of the package that hold parts of the kind, such as `models`; subfolders are not searched.
        name_key: the key that selects a part by its registered name in YAML.
        default_name: the part selected when the key is absent, which is then not written either, or None.
        fallback_name: the part selected when the key is absent, whose name is always written, or None.
    """

    folders: ClassVar[tuple[str, ...]] = ()
    name_key: ClassVar[str] = "name"
    default_name: ClassVar[str | None] = None
    fallback_name: ClassVar[str | None] = None


class Claim(NamedTuple):
    """The part that reads a path, and the keys of its config that say so."""

    name: str
    keys: Mapping[str, object]


Kind: TypeAlias = "type[PartConfig[object]]"

_PARTS: dict[Kind, dict[str, type]] = {}
_PART_OF_CONFIG: dict[type[PartConfig[object]], tuple[str, type]] = {}
_WITHOUT_PARTS = ("detector.__main__", "detector.api", "detector.cli", "detector.media", "detector.workflows")
_RECOGNISER = "detector.data.recogniser"  # lies above this file, so it is imported by its name
_imported_folders: set[str] = set()
_imported_files: dict[Path, None] = {}  # in the order of their import


def _import_folders(folders: Iterable[str]) -> None:
    """Import every module of some folders of the package, which registers the parts in them."""
    for folder in folders:
        if folder in _imported_folders:
            continue
        _imported_folders.add(folder)
        package = importlib.import_module(f"detector.{folder}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def kind_of(config_class: type) -> Kind:
    """Return the kind that a config class belongs to: its ancestor just below `PartConfig`.

    Raises:
        TypeError: the class has no kind.
    """
    for ancestor in config_class.__mro__:
        if PartConfig in ancestor.__bases__:
            return ancestor
    raise TypeError(f"{config_class.__qualname__} belongs to no kind: derive it from a class derived from PartConfig")


def is_kind(candidate: object) -> TypeGuard[Kind]:
    """Return True if a class is a kind, so that a config field of that type is selected by `name`."""
    return isinstance(candidate, type) and PartConfig in candidate.__bases__


def register(name: str) -> Callable[[Part], Part]:
    """Register a class under a name among the parts of its kind.

    Raises:
        TypeError: the class defines no `Config` that is a frozen dataclass with a kind.
        ValueError: the name is taken among the parts of the kind, or the `Config` belongs to another part.
    """

    def add(part: Part) -> Part:
        config_class = part.__dict__.get("Config")
        # An inherited dataclass does not count: without its own decorator the fields of this class would be lost.
        if not (isinstance(config_class, type) and "__dataclass_fields__" in config_class.__dict__):
            raise TypeError(f"@register({name!r}): expected {part.__qualname__} to define a dataclass named Config")
        if not config_class.__dict__["__dataclass_params__"].frozen:  # set by @dataclass
            raise TypeError(f"@register({name!r}): expected {part.__qualname__}.Config to be frozen")
        kind = kind_of(config_class)
        config = cast("type[PartConfig[object]]", config_class)
        if config in _PART_OF_CONFIG:
            raise ValueError(
                f"@register({name!r}): {part.__qualname__}.Config already belongs to {_PART_OF_CONFIG[config][0]!r}"
            )
        taken = _PARTS.setdefault(kind, {})
        if name in taken:
            raise ValueError(f"@register({name!r}): the name is taken by {taken[name].__qualname__}")
        taken[name] = part
        _PART_OF_CONFIG[config] = (name, part)
        return part

    return add


def parts_of(kind: Kind) -> dict[str, type]:
    """Return the parts of a kind by registered name, sorted by name."""
    _import_folders(kind.folders)
    return dict(sorted(_PARTS.get(kind, {}).items()))


def names(kind: Kind) -> list[str]:
    """Return the registered names of a kind, sorted."""
    return list(parts_of(kind))


def kinds() -> list[Kind]:
    """Return every kind that has a part."""
    return list(_PARTS)


def every_kind() -> list[Kind]:
    """Return every kind of the package that has a part, and those of the user's own files."""
    package = importlib.import_module("detector")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(_WITHOUT_PARTS):
            importlib.import_module(module.name)
    return kinds()


def unnamed_part(kind: Kind) -> str | None:
    """Return the name of the part that a section of a kind stands for when it names none, or None."""
    return kind.default_name or kind.fallback_name


def label_of(kind: Kind) -> str:
    """Return the name of a kind in words, such as `image set` for `ImageSetConfig`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Config")).lower()


def find(kind: type[PartConfig[Contract]], name: str) -> type[Contract]:
    """Return the class registered under a name.

    Raises:
        ConfigError: no such name; the message gives the nearest one.
    """
    parts = parts_of(kind)
    if name not in parts:
        raise ConfigError(unknown_name(label_of(kind), name, parts))
    return cast("type[Contract]", parts[name])


def config_classes(kind: type[OwnConfig]) -> dict[str, type[OwnConfig]]:
    """Return the config classes of the parts of a kind by registered name, sorted by name."""
    return {name: part.__dict__["Config"] for name, part in parts_of(kind).items()}


def find_config_class(kind: type[OwnConfig], name: str) -> type[OwnConfig]:
    """Return the config class of the part that is registered under a name.

    Raises:
        ConfigError: no such name; the message gives the nearest one.
    """
    config_class: type[OwnConfig] = find(kind, name).__dict__["Config"]
    return config_class


def reads_paths(kind: Kind) -> bool:
    """Tell whether parts of a kind read files and folders of other programs."""
    return any(hasattr(part, "recognise") for part in parts_of(kind).values())


def is_foreign(path: Path) -> bool:
    """Tell whether a file belongs to another program, and a part reads it."""
    return bool(importlib.import_module(_RECOGNISER).is_foreign(path))


def claim_of(path: Path, kind: Kind, images: Path | None = None) -> Claim:
    """Return the part of a kind that reads a file or folder, and its keys.

    Args:
        path: the file or folder, which must exist.
        kind: the kind of the part.
        images: the folder of the images of an annotation file; None to look for it.

    Raises:
        DatasetError: no part reads it, or several do.
    """
    claim: Claim = importlib.import_module(_RECOGNISER).recognise(path, kind, images)
    return claim


def _registered(config_class: type) -> tuple[str, type]:
    """Return the name and the class of the part that a config class belongs to.

    Raises:
        TypeError: it belongs to no registered part.
    """
    if config_class not in _PART_OF_CONFIG and issubclass(config_class, PartConfig):
        _import_folders(kind_of(config_class).folders)  # the part may stand in another file than its config
    if config_class not in _PART_OF_CONFIG:
        raise TypeError(f"registry: expected the Config of a registered part, got {config_class.__qualname__}")
    return _PART_OF_CONFIG[config_class]


def name_of(config: PartConfig[object]) -> str:
    """Return the registered name of the part that a config belongs to."""
    return _registered(type(config))[0]


def part_of(config_class: type[PartConfig[Contract]]) -> type[Contract]:
    """Return the class of the part that a config class belongs to."""
    return cast("type[Contract]", _registered(config_class)[1])


def build(config: PartConfig[Contract], *args: object, **kwargs: object) -> Contract:
    """Return the part that a config belongs to, constructed from the config and the other arguments.

    Raises:
        TypeError: the config belongs to no registered part.
    """
    constructor: Callable[..., Contract] = part_of(type(config))
    return constructor(config, *args, **kwargs)


def import_parts(path: Path) -> None:
    """Run a Python file of the user's, so that a configuration can name the parts that it registers.

    A file runs once in a process, because its names would be duplicates the second time.

    Raises:
        ConfigError: the file is missing or is not a Python file.
    """
    if absolute(path) in _imported_files:
        return
    specification = importlib.util.spec_from_file_location(f"detector_parts_{path.stem}", path)
    if not path.is_file() or specification is None or specification.loader is None:
        raise ConfigError(f"--import: expected a Python file with registered parts, got {str(path)!r}; check the path")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    _imported_files[absolute(path)] = None


class ImportedFiles:
    """The files that this process imported with `import_parts`; a process that unpickles the object imports them too.

    An object that holds parts and is sent to a spawned process keeps one as its first attribute, because the process
    needs the classes of the parts before it can unpickle the parts.
    """

    def __init__(self) -> None:
        self._paths = tuple(_imported_files)

    def __setstate__(self, state: dict[str, tuple[Path, ...]]) -> None:
        self.__dict__.update(state)
        for path in self._paths:
            import_parts(path)
