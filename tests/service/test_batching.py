from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from detector.errors import DetectorError
from detector.service.batching import Batcher
from detector.structures.selection import SelectConfig

IMAGE = np.zeros((4, 4, 3), np.uint8)
PLAIN = SelectConfig()


@dataclass
class Recorder:
    """Predictor that notes the images of each pass, and waits until it is let go on."""

    calls: list[tuple[int, SelectConfig]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def detect(self, images: list[np.ndarray], config: SelectConfig) -> list[int]:
        self.gate.wait(10)
        self.calls.append((len(images), config))
        if any(image.max() for image in images):
            raise RuntimeError("out of memory")
        return list(range(len(images)))


def batcher(recorder: Any, max_wait_s: float = 0.0, sizes: tuple[int, ...] = (1, 2, 4)) -> Batcher:
    return Batcher(dict.fromkeys(sizes, recorder), max_wait_s)


def submitted(made: Batcher, *configs: SelectConfig) -> list[Future]:
    return [made.submit(IMAGE, config) for config in configs]


def test_images_that_wait_go_through_the_network_together() -> None:
    recorder = Recorder()
    made = batcher(recorder)
    answers = submitted(made, PLAIN)
    time.sleep(0.05)  # the first pass holds one image
    answers += submitted(made, *[PLAIN] * 6)
    recorder.gate.set()
    assert [answer.result(5) for answer in answers] == [0, 0, 1, 2, 3, 0, 1]
    assert [num for num, _ in recorder.calls] == [1, 4, 2]
    made.close()
    assert not made.is_alive


def test_image_waits_for_others_only_so_long() -> None:
    recorder = Recorder()
    recorder.gate.set()
    made = batcher(recorder, max_wait_s=0.2)
    started_s = time.monotonic()
    assert submitted(made, PLAIN)[0].result(5) == 0
    assert 0.19 <= time.monotonic() - started_s < 1.5
    started_s = time.monotonic()
    for answer in submitted(made, *[PLAIN] * 4):  # a full batch waits for nothing
        answer.result(5)
    assert time.monotonic() - started_s < 0.19
    made.close()


def test_other_settings_go_in_a_later_pass() -> None:
    recorder, other = Recorder(), SelectConfig(confidence=0.5)
    made = batcher(recorder)
    submitted(made, PLAIN)
    time.sleep(0.05)
    answers = submitted(made, PLAIN, other, PLAIN, other)
    recorder.gate.set()
    for answer in answers:
        answer.result(5)
    assert recorder.calls == [(1, PLAIN), (2, PLAIN), (2, other)]
    made.close()


def test_cancelled_image_is_left_out_and_a_failed_pass_ends_nothing() -> None:
    recorder = Recorder()
    made = batcher(recorder)
    first = made.submit(IMAGE + 1, PLAIN)
    time.sleep(0.05)
    cancelled, kept = submitted(made, PLAIN, PLAIN)
    assert cancelled.cancel()
    recorder.gate.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        first.result(5)
    assert kept.result(5) == 0
    assert [num for num, _ in recorder.calls] == [1, 1]
    made.close()


def test_closed_batcher_answers_what_waits_and_refuses_more() -> None:
    recorder = Recorder()
    made = batcher(recorder)
    answers = submitted(made, *[PLAIN] * 5)
    threading.Timer(0.05, recorder.gate.set).start()
    made.close()
    assert all(answer.done() for answer in answers)
    with pytest.raises(DetectorError, match="stopping"):
        made.submit(IMAGE, PLAIN)
