"""Bounds on the size of a network, checked before it takes memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules import module as registration

from detector.errors import ConfigError

MAX_PARAMETERS = 2**30  # 4 GiB of float32; the largest published detectors have 3e8
MAX_MODULES = 20_000  # modules and parameters; the largest published detectors have 3,000


class _TooLargeError(ConfigError):
    """A network has more parameters or modules than the bounds."""


def require_bounded(build: Callable[[], nn.Module]) -> None:
    """Reject a network that is too large, by building it without memory for its parameters.

    Random numbers are drawn as if it had not been built.

    Raises:
        ConfigError: it has more than `MAX_PARAMETERS` parameters or `MAX_MODULES` modules.
    """
    num_parameters = num_modules = 0

    def count(owner: nn.Module, name: str, part: nn.Module | nn.Parameter | None) -> None:
        nonlocal num_parameters, num_modules
        num_modules += 1
        num_parameters += part.numel() if isinstance(part, nn.Parameter) else 0
        if num_parameters > MAX_PARAMETERS or num_modules > MAX_MODULES:
            raise _TooLargeError(
                f"model: expected a network of at most {MAX_PARAMETERS:,} parameters and {MAX_MODULES:,} modules, got "
                f"more; lower its width, channels or depth"
            )

    hooks = (
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    )
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            build()
    except _TooLargeError:
        raise
    except Exception:  # a part of one's own may need memory in its constructor; what is wrong is said when it is built
        return
    finally:
        for hook in hooks:
            hook.remove()
