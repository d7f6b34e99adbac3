from __future__ import annotations

import numpy as np

from detector.media.regions import draw_regions


def test_lines_and_zones_are_drawn_at_their_positions() -> None:
    ground = np.full((100, 200, 3), 60, np.uint8)
    drawn = draw_regions(
        ground, [((20.0, 50.0), (180.0, 50.0), "1", "2")], [([(0, 0), (40, 0), (40, 40), (0, 40)], "3")]
    )
    assert (ground == 60).all()
    assert (drawn[50, 30:170] > 200).all()
    assert 60 < drawn[38, 38, 0] < 200  # the zone has a transparent tint
    assert (drawn[70:, :] != 60).any()  # the text on the right side of the line is below it
    assert (drawn[90:, :80] == 60).all()
