from __future__ import annotations

from typing import Any

import pytest

from detector.data.augment.augment_config import AugmentConfig


@pytest.mark.parametrize(
    "settings",
    [
        *({"perspective": 0.6}, {"jpeg": 100}, {"noise": -1}, {"cutout": 0.6}, {"crop": 2}, {"copy_paste": -0.5}),
        *({"mosaic": 1.1}, {"mixup": -0.1}, {"scale": 1.0}, {"scale": -0.5}, {"degrees": -1}, {"hue": -0.1}),
        *({"shear": 90}, {"tile": 31}),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"expected .*{next(iter(settings))}.*, got"):
        AugmentConfig(**settings)
