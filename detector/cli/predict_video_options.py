"""Options of `detector predict` for videos and streams; importing them loads no library."""

from __future__ import annotations

import argparse
import math

from detector.cli.common_options import natural, positive


def add_video_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for sources with frames."""
    group = parser.add_argument_group("videos, cameras (camera:0), streams (rtsp://, http://) and images on stdin (-)")
    group.add_argument("--allow-url", action="store_true", help="open sources that are addresses")
    group.add_argument(
        "--fps",
        type=_rate,
        metavar="N",
        help="frames per second of images and stdin; makes one video of the images of a folder, glob or f_%%04d.png "
        "(default: they are single images)",
    )
    group.add_argument("--stride", type=positive, default=1, metavar="N", help="look at every Nth frame (default 1)")
    group.add_argument("--every-frame", action="store_true", help="let live sources wait instead of dropping frames")
    group.add_argument(
        "--max-reconnect",
        type=natural,
        default=5,
        metavar="N",
        help="attempts in a row to reach a lost live source (default 5)",
    )
    group.add_argument(
        "--codec", default="mp4v", metavar="NAME", help="of annotated videos: mp4v (default), avc1, MJPG or VP90"
    )
    group.add_argument("--show", action="store_true", help="show annotated frames in a window")


def _rate(text: str) -> float:
    try:
        fps = float(text)
    except ValueError:
        fps = math.nan
    if not 0.1 <= fps <= 500:
        raise argparse.ArgumentTypeError(f"expected a number of 0.1 to 500, got {text!r}")
    return fps
