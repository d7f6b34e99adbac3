from __future__ import annotations

import os
from pathlib import Path

from detector.media.sources import FrameOrigin, ImageSource, VideoSource
from detector.media.writers import FileNames, stem_of


def test_names_are_unique_and_avoid_sources_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    names = FileNames(tmp_path, [tmp_path / "deep/Own.png", Path("/elsewhere/other.jpg")])

    def of(name: str) -> str:
        return names.of(ImageSource(name, Path(name)))

    assert [of(n) for n in ("x/a.jpg", "y/a.jpg", "y/A.png", "own.jpg", "other.jpg")] == [
        "a", "a_2", "A_3", "own_2", "other",
    ]  # fmt: skip
    assert [of(n) for n in ("u\u0308.jpg", "ü.jpg")] == ["u\u0308", "ü_2"]  # one name on some systems
    assert [of(n) for n in ("..", ".", " . ")] == ["image", "image_2", "image_3"]
    long = of("x" * 100 + "猫" * 60 + ".jpg")
    assert long.startswith("x" * 100 + "猫")
    assert len(os.fsencode(long)) <= 200
    frame = FrameOrigin(VideoSource("film.mp4"), 7, None, 30.0)
    assert names.of(ImageSource("film.mp4", frame=frame)) == "film_000007"


def test_stem_of_a_video_is_made_unique_like_the_name_of_an_image(tmp_path: Path) -> None:
    names = FileNames(tmp_path, [tmp_path / "film.mp4"])
    assert [names.free(stem) for stem in ("Film", "film", "FILM_2", " . ")] == ["Film_2", "film_3", "FILM_2_2", "image"]
    assert len(os.fsencode(names.free("猫" * 100))) <= 200


def test_address_becomes_a_name_in_letters_that_every_system_accepts() -> None:
    assert stem_of(VideoSource("rtsp://camera.lan/a/1?x=2")) == "camera.lan_a_1_x_2"
    assert stem_of(VideoSource("camera:0")) == "camera_0"
    assert stem_of(VideoSource("folder/film.part.mp4")) == "film.part"
