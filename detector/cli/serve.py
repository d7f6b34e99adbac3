"""`detector serve`."""

from __future__ import annotations

import argparse

import torch

from detector.cli.main import Stopped
from detector.cli.progress import say
from detector.cli.usage import split_words
from detector.models.published_weights import DEFAULT_MODEL
from detector.service.serve import require_service_libraries, serve
from detector.service.service_config import ServiceConfig


def run(arguments: argparse.Namespace) -> int:
    """Serve models until a signal; return the exit code."""
    names, overrides = split_words(arguments)
    require_service_libraries()
    config = ServiceConfig(
        arguments.host,
        arguments.port,
        tuple(arguments.allow_host),
        batch_size=arguments.batch,
        max_wait_s=arguments.max_wait / 1e3,
        max_bytes=arguments.max_mb << 20,
        max_pixels=arguments.max_megapixels * 1_000_000,
        max_queue=arguments.queue,
        body_timeout_s=arguments.body_timeout,
        timeout_s=arguments.timeout,
    )
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    addresses: list[str] = []

    def announce(address: str) -> None:
        addresses.append(address)
        say(f"serving at {address}; Ctrl-C ends it", arguments.quiet)

    try:
        serve(names or [DEFAULT_MODEL], overrides, config, announce)
    except Stopped:  # uvicorn answers the requests in work and then repeats the signal
        if not addresses:
            raise
    return 0
