"""The registry of parts: registration, lookup, rejected classes and imported parts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import pytest
import torch

from detector.config import registry
from detector.config.name_suggestions import nearest
from detector.config.registry import (
    PartConfig,
    build,
    find,
    import_parts,
    is_kind,
    kind_of,
    kinds,
    name_of,
    names,
    register,
)
from detector.data.augment.augmentation import AugmentationConfig
from detector.errors import ConfigError
from detector.models.activations import ActivationConfig
from detector.tasks.detection_model import build_model
from detector.tasks.task import load_experiment


@pytest.fixture(autouse=True)
def _restored_registry(monkeypatch):
    """Remove the parts that a test registers."""
    registry.every_kind()  # a folder that is first imported inside a test would be forgotten after it
    monkeypatch.setattr(registry, "_PARTS", {kind: dict(parts) for kind, parts in registry._PARTS.items()})
    monkeypatch.setattr(registry, "_PART_OF_CONFIG", dict(registry._PART_OF_CONFIG))


@dataclass(frozen=True)
class FruitConfig(PartConfig):
    """A kind for these tests."""

    sweet: bool = True


def an_apple(name: str = "apple") -> type:
    @register(name)
    class Apple:
        @dataclass(frozen=True)
        class Config(FruitConfig):
            kernels: int = 5

        def __init__(self, config, worm=None, *, leaf=False):
            self.config, self.worm, self.leaf = config, worm, leaf

    return Apple


def test_registered_part_is_found_and_built_from_its_config():
    apple = an_apple()
    assert find(FruitConfig, "apple") is apple
    assert names(FruitConfig) == ["apple"]
    assert FruitConfig in kinds()
    config = apple.Config(kernels=3)
    built = build(config, "worm", leaf=True)
    assert type(built) is apple
    assert (built.config, built.worm, built.leaf) == (config, "worm", True)
    assert name_of(config) == "apple"


def test_names_are_sorted():
    an_apple("pear")
    an_apple("apple")
    assert names(FruitConfig) == ["apple", "pear"]


def test_same_name_can_be_used_in_two_kinds():
    an_apple("mish")  # an activation has this name
    assert find(FruitConfig, "mish") is not find(ActivationConfig, "mish")


def test_duplicate_name_is_rejected_and_the_first_part_stays():
    apple = an_apple()
    with pytest.raises(ValueError, match=r"@register\('apple'\): the name is taken by .*Apple"):
        an_apple()
    assert find(FruitConfig, "apple") is apple


def test_part_without_its_own_config_is_rejected():
    with pytest.raises(TypeError, match=r"@register\('x'\): expected .*Bare to define a dataclass named Config"):

        @register("x")
        class Bare:
            pass

    apple = an_apple()
    with pytest.raises(TypeError, match="to define a dataclass named Config"):

        @register("y")
        class Inherits(apple):
            pass

    with pytest.raises(TypeError, match="to define a dataclass named Config"):

        @register("z")
        class NoDataclass:
            class Config:
                pass

    assert names(FruitConfig) == ["apple"]


def test_config_that_is_not_frozen_is_rejected():
    with pytest.raises(TypeError, match=r"expected .*Thawed.Config to be frozen"):

        @register("x")
        class Thawed:
            @dataclass
            class Config:
                size: int = 1


def test_config_without_a_dataclass_decorator_is_rejected():
    """It inherits the fields of its kind, so its own fields would be ignored silently."""
    with pytest.raises(TypeError, match="Forgetful to define a dataclass named Config"):

        @register("x")
        class Forgetful:
            class Config(FruitConfig):
                colour: str = "red"


def test_config_of_another_part_is_rejected():
    """A config determines its part, so two parts of one config would both be built as the last one."""
    apple = an_apple()
    with pytest.raises(ValueError, match=r"@register\('pear'\): .*Config already belongs to 'apple'"):

        @register("pear")
        class Pear:
            Config = apple.Config

    assert name_of(apple.Config()) == "apple"
    assert names(FruitConfig) == ["apple"]


def test_config_without_a_kind_is_rejected():
    with pytest.raises(TypeError, match="belongs to no kind"):

        @register("x")
        class Kindless:
            @dataclass(frozen=True)
            class Config:
                size: int = 1


def test_kind_is_the_class_just_below_the_base():
    @dataclass(frozen=True)
    class Grandchild(ActivationConfig):
        pass

    assert kind_of(Grandchild) is ActivationConfig
    assert kind_of(ActivationConfig) is ActivationConfig
    assert is_kind(ActivationConfig)
    for other in (Grandchild, PartConfig, int, "text", None):
        assert not is_kind(other)
    with pytest.raises(TypeError, match="PartConfig belongs to no kind"):
        kind_of(PartConfig)


def test_unknown_name_is_reported_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"no activation is named 'mihs'; did you mean 'mish'\?"):
        find(ActivationConfig, "mihs")
    with pytest.raises(ConfigError, match=r"no activation is named 'zzzzz'; known: elu, gelu, .*, mish, .*, silu"):
        find(ActivationConfig, "zzzzz")
    assert nearest("anything", []) == "; known: none"


def test_object_that_is_no_config_of_a_part_is_not_built():
    with pytest.raises(TypeError, match="registry: expected the Config of a registered part, got FruitConfig"):
        build(FruitConfig())
    with pytest.raises(TypeError, match="got int"):
        build(3)


def test_every_shipped_part_builds_its_default_config():
    """Each key of a part has a default, so that a registered name alone is a complete section."""
    for kind in [k for k in kinds() if k.__module__.startswith("detector.")]:
        assert names(kind) or kind is AugmentationConfig  # the package ships none of these
        for name in names(kind):
            config = find(kind, name).Config()
            assert name_of(config) == name
            assert kind_of(type(config)) is kind


# --- imported parts ------------------------------------------------------------------------------------------------

MY_PARTS = '''
from dataclasses import dataclass

import torch
from torch import nn

from detector import register
from detector.models.activations import ActivationConfig


@register("squareplus")
class Squareplus(nn.Module):
    """(x + sqrt(x^2 + b)) / 2."""

    @dataclass(frozen=True)
    class Config(ActivationConfig):
        b: float = 4.0

    def __init__(self, config):
        super().__init__()
        self.b = config.b

    def forward(self, x):
        return (x + torch.sqrt(x * x + self.b)) / 2
'''


@pytest.fixture
def my_parts(tmp_path):
    path = tmp_path / "my_parts.py"
    path.write_text(MY_PARTS, encoding="utf-8")
    return path


def test_imported_part_works_in_config_forward_and_backward(my_parts):
    import_parts(my_parts)
    config = load_experiment("mish-n", ["model.activation=squareplus", "model.activation.b=2.0", "input.size=64"])
    assert name_of(config.model.activation) == "squareplus"
    assert config.model.activation.b == 2.0
    model = build_model(config, num_classes=3)
    parts = [m for m in model.modules() if type(m).__name__ == "Squareplus"]
    assert len(parts) > 10
    assert all(part.b == 2.0 for part in parts)
    raw_maps = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    sum(m.square().mean() for m in raw_maps).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


def test_misspelt_name_of_an_imported_part_is_reported_with_the_right_one(my_parts):
    import_parts(my_parts)
    with pytest.raises(ConfigError, match=r"no activation is named 'squarplus'; did you mean 'squareplus'\?"):
        load_experiment("mish-n", ["model.activation=squarplus"])


@pytest.mark.parametrize("name", ["missing.py", "notes.txt", "folder.py"])
def test_path_that_is_no_python_file_is_not_imported(tmp_path, name):
    (tmp_path / "notes.txt").write_text("not Python", encoding="utf-8")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match=rf"--import: expected a Python file .*{name}'; check the path"):
        import_parts(tmp_path / name)


def test_config_may_have_fields_of_every_plain_type():
    @register("bowl")
    class Bowl:
        @dataclass(frozen=True)
        class Config(FruitConfig):
            sizes: tuple[int, ...] = (1, 2)
            tags: tuple[dict[str, int], ...] = field(default=())

    assert Bowl.Config().sizes == (1, 2)


def test_kinds_are_listed_where_an_optional_reader_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # its import raises
    monkeypatch.delitem(sys.modules, "detector.media.pyav_reader", raising=False)
    assert ActivationConfig in registry.every_kind()
