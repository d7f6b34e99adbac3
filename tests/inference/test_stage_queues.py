from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from detector.inference.stage_queues import Channel, Inbox, Ordered
from detector.media.sources import ImageSource


def image(name: str, **settings: Any) -> ImageSource:
    return ImageSource(name, pixels=np.zeros((1, 1, 3), np.uint8), **settings)


def names(taken: tuple[int, list[ImageSource]]) -> list[str]:
    return [source.name for source in taken[1]]


def test_channel_keeps_order_and_capacity() -> None:
    channel: Channel[int] = Channel(3)
    num_put = []

    def fill() -> None:
        for number in range(100):
            num_put.append(channel.put(number))  # noqa: PERF401, its length is looked at meanwhile
        channel.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(fill)
        got = []
        for number in channel:
            got.append(number)
            assert len(num_put) <= number + 1 + 3 + 1
    assert got == list(range(100))
    assert all(num_put)


def test_cancelling_a_channel_wakes_both_ends() -> None:
    full, empty = Channel[int](1), Channel[int](1)
    full.put(0)
    with ThreadPoolExecutor(2) as pool:
        putting, getting = pool.submit(full.put, 1), pool.submit(lambda: list(empty))
        time.sleep(0.05)
        assert not putting.done()
        assert not getting.done()
        full.cancel()
        empty.cancel()
        assert putting.result(5) is False
        assert getting.result(5) == []
    assert list(full) == []


def test_results_of_parallel_threads_come_out_in_order() -> None:
    ordered: Ordered[int] = Ordered(3)
    numbers = iter(range(50))
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                ordered.end(50)
                return
            time.sleep(rng.uniform(0, 0.004))
            assert ordered.put(number, number * number)

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, seed) for seed in range(4)]
        assert list(ordered) == [number * number for number in range(50)]
        for done in working:
            done.result()


def test_cancelling_wakes_producers_and_consumers() -> None:
    ordered, empty = Ordered[int](2), Ordered[int](2)
    with ThreadPoolExecutor(2) as pool:
        putting, getting = pool.submit(ordered.put, 2, 0), pool.submit(lambda: list(empty))
        time.sleep(0.05)
        assert not putting.done()
        assert not getting.done()
        ordered.cancel()
        empty.cancel()
        assert putting.result(5) is False
        assert getting.result(5) == []


def test_end_that_is_announced_after_a_cancellation_keeps_nobody_waiting() -> None:
    ordered, got = Ordered[int](2), [1]
    ordered.cancel()
    ordered.end(5)  # by a thread that saw the end of its images only now
    consumer = threading.Thread(target=lambda: got.extend(ordered), daemon=True)
    consumer.start()
    consumer.join(5)
    assert not consumer.is_alive()
    assert got == [1]


def test_newest_image_of_a_live_source_keeps_the_warnings_of_replaced_ones() -> None:
    inbox = Inbox([False], 4)
    for number in range(5):
        inbox.put(0, image(str(number), warnings=(f"w{number}",) if number % 2 else ()))
    _, (taken,) = inbox.take(8)
    assert (taken.name, taken.warnings, inbox.num_dropped) == ("4", ("w1", "w3"), [4])
    inbox.put(0, image("5"))
    assert names(inbox.take(8)) == ["5"]
    inbox.end(0)
    assert names(inbox.take(8)) == []


def test_error_of_a_live_source_replaces_no_image() -> None:
    inbox = Inbox([False], 4)
    inbox.put(0, image("last"))
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(inbox.put, 0, image("error", error="lost"))
        assert names(inbox.take(1)) == ["last"]
        assert put.result(5)
    assert names(inbox.take(1)) == ["error"]
    assert inbox.num_dropped == [0]


def test_waiting_sources_fill_batches_and_the_last_one_is_smaller() -> None:
    inbox, taken = Inbox([True], 8), []
    with ThreadPoolExecutor(1) as pool:

        def fill() -> None:
            for number in range(10):
                inbox.put(0, image(str(number)))
                time.sleep(0.002)
            inbox.end(0)

        pool.submit(fill)
        while names(batch := inbox.take(4)):
            taken.append(names(batch))
            assert batch[0] == len(taken) - 1
        assert batch[0] == 3
    assert taken == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_several_sources_are_served_in_turn() -> None:
    inbox = Inbox([True, False, False], 8)
    for number in range(6):
        inbox.put(0, image(f"file {number}"))
    inbox.put(1, image("left"))
    inbox.put(2, image("right"))
    assert names(inbox.take(4)) == ["file 0", "left", "right", "file 1"]
    inbox.put(1, image("left again"))
    assert names(inbox.take(2)) == ["left again", "file 2"]


def test_stop_wakes_a_waiting_source() -> None:
    inbox = Inbox([True], 2)
    answers = []

    def fill() -> None:
        while inbox.put(0, image("x")):
            answers.append(True)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.05)
    assert len(answers) == 2
    inbox.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert names(inbox.take(8)) == []
