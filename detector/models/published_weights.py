"""Weights that others publish, by name, and the places where their files are looked for.

`weights/index.yaml` lists them. `yolox-nano` is shipped with the package; `detector download NAME` fetches another one.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from detector.config.name_suggestions import nearest
from detector.config.schema import load_config
from detector.errors import CheckpointError
from detector.io.files import sha256_of_files
from detector.io.folders import user_cache
from detector.models.checkpoint import ModelFile
from detector.models.yolox_checkpoint import size_of_config
from detector.structures.coco_classes import COCO_CATEGORY_IDS, COCO_CLASS_NAMES

DEFAULT_MODEL = "yolox-nano"  # the weights in the package
# The start of mish-n in the package, by `tools/pretrain.py`; it knows only drawn shapes.
DRAWN_START = "mish-n-drawn"
MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".weights")
MAX_NAME_BYTES = 255  # of the name of a file, on Linux, macOS and Windows


@dataclass(frozen=True)
class PublishedWeights:
    """Weights file that others publish.

    Attributes:
        name: name of the entry.
        network: name of its network: a preset `yolox-SIZE`, or a Darknet network, which is shipped as
            `cfg/darknet/NETWORK.cfg` or is on the publisher's page.
        url: address of the file.
        num_bytes: exact length of the file, or None if it is not known.
        page: address of the publisher's page.
        licence: the licence, as far as it is stated.
        trained_on: the data that the weights were trained on, as far as it is stated.
        ap: AP at IoU 0.50:0.95 in percent, as the page prints it.
        ap50: AP at IoU 0.50 in percent, as the page prints it.
        measured_at: side of the input in pixels at which AP and AP50 were measured.
        test_set: images that they were measured on, as far as it is stated.
        num_layers: number of layers, for a file that holds the first layers only.
    """

    name: str
    network: str
    url: str
    num_bytes: int | None
    page: str
    licence: str
    ap: float | None = None
    ap50: float | None = None
    measured_at: int | None = None
    test_set: str | None = None
    num_layers: int | None = None
    trained_on: str | None = None

    @property
    def file_name(self) -> str:
        """The name that the publisher gave the file."""
        return self.url.rpartition("/")[2]

    @property
    def is_yolox(self) -> bool:
        """True if it is a `.pth` file of YOLOX, false if it is one of Darknet."""
        return self.file_name.endswith(".pth")

    @property
    def provenance(self) -> dict[str, str]:
        """The provenance of a model that starts from the file, as in `ModelFile`."""
        found = {"source": self.url, "licence": self.licence, "trained_on": self.trained_on}
        return {key: text for key, text in found.items() if text is not None}


@dataclass(frozen=True)
class _WeightsIndex:
    weights: tuple[PublishedWeights, ...]


def packed_file(packed: str, source: str) -> Path:
    """Return the path of a file that is shipped: inside the installed package, or in a source checkout."""
    package = Path(__file__).parents[1]
    return package / packed if (package / packed).exists() else package.parent / source


@functools.cache
def published_weights() -> dict[str, PublishedWeights]:
    """Return every published file by name.

    Raises:
        ConfigError: the index cannot be read.
    """
    weights = load_config(_WeightsIndex, str(packed_file("index/weights.yaml", "weights/index.yaml"))).weights
    return {entry.name: entry for entry in weights}


def model_names() -> tuple[str, ...]:
    """Return the names that commands take as models: those of published weights and of the start in the package."""
    return (*published_weights(), DRAWN_START)


def cache_folder() -> Path:
    """Return the user's folder of weights, `~/.cache/detector/weights` or below `XDG_CACHE_HOME`."""
    return user_cache() / "weights"


def published_file(name: str) -> Path | None:
    """Return the file of a published name, or None if it is not on this machine.

    It is looked for in `weights/` of the working directory, in the package and in `cache_folder()`.
    """
    entry = published_weights().get(name)
    file_names = (f"{name}.safetensors", *([] if entry is None else [entry.file_name]))
    for folder in (Path("weights"), packed_file("weights", "weights"), cache_folder()):
        for file_name in file_names:
            if (folder / file_name).is_file():
                return folder / file_name
    return None


def is_published(word: str | Path) -> bool:
    """Tell whether a word is the name of published weights and not of an existing file or folder."""
    return not os.path.exists(word) and Path(word).name in model_names()


def run_weights(folder: Path) -> Path | None:
    """Return the best weights of a run folder, or the last ones before its first evaluation; None for another path.

    Raises:
        CheckpointError: it is the folder of a cross-validation.
    """
    require_single_run(folder)
    files = (folder / "weights" / name for name in ("best.safetensors", "last.safetensors", "last.pt"))
    return next((file for file in files if os.path.isfile(file)), None)  # Path.is_file raises for a long name


def require_single_run(folder: Path) -> None:
    """Raise a `CheckpointError` for the folder of a cross-validation, which holds several run folders."""
    if os.path.isdir(first := folder / "fold1"):
        raise CheckpointError(f"{folder}: expected a single run, got a cross-validation; give a run, such as {first}")


def model_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file, of an OpenVINO graph and its weights, or of the files of a folder."""
    if path.is_dir():
        return sha256_of_files(sorted(each for each in path.rglob("*") if each.is_file()))
    weights = path.with_suffix(".bin")
    return sha256_of_files([path, weights] if path.suffix == ".xml" and weights.is_file() else [path])


def resolve_weights(path: Path) -> Path:
    """Return the model file that a word names: a path, a run folder, or the name of published weights.

    A file may also lie in a folder `weights` beside its path, where downloads are put. The path of a missing file is
    returned as it is.

    Raises:
        CheckpointError: it is the name of published weights that are not on this machine, and the message names the
            command that fetches them; or no file has this name, which has no suffix.
        OSError: the name has no suffix and is too long for a file.
    """
    if os.path.exists(path):
        return run_weights(path) or path
    if os.path.isfile(beside := path.parent / "weights" / path.name):
        return beside
    if not is_published(path):
        if not path.suffix:
            if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
            known = nearest(path.name, model_names())
            raise CheckpointError(f"{path} is no model file, and no published weights have this name{known}")
        return path
    found = published_file(path.name)
    if found is None:
        if path.name == DRAWN_START:
            raise CheckpointError(f"{path.name}: its file is missing; `python tools/pretrain.py` makes it again")
        entry = published_weights()[path.name]
        raise CheckpointError(
            f"{path.name}: its published weights are not on this machine; `detector download {path.name}` fetches them "
            f"(licence: {entry.licence})"
        )
    return found


def entry_of_file(path: Path) -> PublishedWeights | None:
    """Return the published file that has the name of a file, or None."""
    return next((entry for entry in published_weights().values() if entry.file_name == path.name), None)


def with_origin(file: ModelFile, path: Path) -> ModelFile:
    """Return a model file read from another program's format with its provenance, and COCO's names for its classes.

    The name of the file decides which published file it is.
    """
    entry = entry_of_file(path)
    if entry is None:
        return dataclasses.replace(file, provenance={"source": path.name})
    names, ids = file.class_names, file.category_ids
    numbers = tuple(map(str, range(len(COCO_CLASS_NAMES))))
    if names == numbers and (entry.trained_on or "").startswith("COCO"):
        names, ids = COCO_CLASS_NAMES, COCO_CATEGORY_IDS
    return dataclasses.replace(file, class_names=names, category_ids=ids, provenance=entry.provenance)


def require_network(entry: PublishedWeights, file: ModelFile) -> None:
    """Require that a model file is of the network and has the classes of a published entry.

    Raises:
        CheckpointError: it is of another one.
    """
    given = f"yolox-{size_of_config(file.config)}"
    if given != entry.network or len(file.class_names) != len(COCO_CLASS_NAMES):
        raise CheckpointError(
            f"{entry.url}: expected the weights of {entry.network} with {len(COCO_CLASS_NAMES)} classes, got {given} "
            f"with {len(file.class_names)}; the publisher changed the file"
        )
