"""Many kinds of video files, made here: each gives FFmpeg's frames, times and pixels, or a sentence with the reason."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.media import video
from detector.media.sources import ImageSource, VideoSource
from detector.media.streams import frames_of
from detector.structures.letterbox import Image

av = pytest.importorskip("av")

INTERLACED_FLAGS = 1 << 18 | 1 << 29  # AV_CODEC_FLAG_INTERLACED_DCT and AV_CODEC_FLAG_INTERLACED_ME
NUM_FRAMES = 24
FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
B_FRAMES = {"bf": "3", "x264-params": "log-level=none"}
X264, X265, VP9 = {"x264-params": "log-level=none"}, {"x265-params": "log-level=none"}, {"deadline": "realtime"}
TOP_FIRST, BOTTOM_FIRST = {"x264-params": "log-level=none:tff=1"}, {"x264-params": "log-level=none:bff=1"}
PAL = (576, 720)

# File, codec, and settings: fps, hw, pix_fmt, options of the codec; interlaced; rotation in degrees; first: time of the
# first frame in frames; pts: number of each frame, where they are not 0, 1, 2; mux: options of the container; sound:
# seconds of it; cut: the file is trimmed by an edit list.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "h264": ("a.mp4", "libx264", {"options": X264}),
    "h264 B-frames": ("a.mp4", "libx264", {"options": B_FRAMES}),
    "h264 B-frames, no edit list": ("a.mp4", "libx264", {"options": B_FRAMES, "mux": {"use_editlist": "0"}}),
    "h264 in mkv": ("a.mkv", "libx264", {"options": B_FRAMES}),
    "h264 in mov": ("a.mov", "libx264", {"options": B_FRAMES}),
    "h264 in ts": ("a.ts", "libx264", {"options": B_FRAMES}),
    "h264 in flv": ("a.flv", "libx264", {"options": X264}),
    "h264 in avi": ("a.avi", "libx264", {"options": {**X264, "bf": "0"}}),
    "h264 alone": ("a.h264", "libx264", {"options": X264}),
    "h264 fragmented": ("a.mp4", "libx264", {"options": X264, "mux": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264 index first": ("a.mp4", "libx264", {"options": X264, "mux": {"movflags": "faststart"}}),
    "h264 4:4:4, odd sides": ("a.mp4", "libx264", {"options": X264, "pix_fmt": "yuv444p", "hw": (47, 63)}),
    "h264 10 bit": ("a.mp4", "libx264", {"options": X264, "pix_fmt": "yuv420p10le"}),
    "h264 full range": ("a.mp4", "libx264", {"options": X264, "pix_fmt": "yuvj420p"}),
    "h264 cropped": ("a.mp4", "libx264", {"options": X264, "hw": (50, 70)}),
    "h264 23.976": ("a.mp4", "libx264", {"options": B_FRAMES, "fps": FILM}),
    "h264 29.97": ("a.mkv", "libx264", {"options": X264, "fps": NTSC}),
    "h264 119.88": ("a.mp4", "libx264", {"options": X264, "fps": 4 * NTSC}),
    "h264 1 fps": ("a.mp4", "libx264", {"options": X264, "fps": Fraction(1)}),
    "h264 starts late": ("a.mp4", "libx264", {"options": X264, "first": 50}),
    "h264 starts late in mkv": ("a.mkv", "libx264", {"options": B_FRAMES, "first": 125}),
    "h264 starts late in ts": ("a.ts", "libx264", {"options": X264, "first": 300}),
    "h264 gaps": ("a.mp4", "libx264", {"options": X264, "pts": [n + n // 5 for n in range(NUM_FRAMES)]}),
    "h264 gaps in mkv": ("a.mkv", "libx264", {"options": X264, "pts": [n + 7 * (n > 9) for n in range(NUM_FRAMES)]}),
    "h264 variable rate": ("a.mp4", "libx264", {"options": X264, "pts": [n * n for n in range(NUM_FRAMES)]}),
    "h264 turned 90": ("a.mp4", "libx264", {"options": X264, "rotation": 90}),
    "h264 turned 180": ("a.mp4", "libx264", {"options": X264, "rotation": 180}),
    "h264 turned 270": ("a.mov", "libx264", {"options": X264, "rotation": 270}),
    "h264 cut": ("a.mp4", "libx264", {"options": X264, "cut": 7}),
    "h264 B-frames cut": ("a.mp4", "libx264", {"options": B_FRAMES, "cut": 7}),
    "h264 with longer sound": ("a.mp4", "libx264", {"options": X264, "sound": 3}),
    "h264 with longer sound in mkv": ("a.mkv", "libx264", {"options": X264, "sound": 3}),
    "h264 with longer sound in ts": ("a.ts", "libx264", {"options": X264, "sound": 3}),
    "h264 with longer sound in flv": ("a.flv", "libx264", {"options": X264, "sound": 3}),
    "mpeg4 with longer sound in avi": ("a.avi", "mpeg4", {"sound": 3}),
    "mpeg2 with longer sound in mpg": ("a.mpg", "mpeg2video", {"sound": 3}),
    "wmv2 with longer sound": ("a.wmv", "wmv2", {"sound": 3}),
    "h264 interlaced, top first": ("a.mp4", "libx264", {"options": TOP_FIRST, "interlaced": True}),
    "h264 interlaced, bottom first": ("a.m2ts", "libx264", {"options": BOTTOM_FIRST, "interlaced": True}),
    "h264 one frame": ("a.mp4", "libx264", {"options": X264, "pts": [0]}),
    "hevc": ("a.mp4", "libx265", {"options": X265}),
    "hevc 10 bit in mkv": ("a.mkv", "libx265", {"options": X265, "pix_fmt": "yuv420p10le"}),
    "hevc in ts": ("a.ts", "libx265", {"options": X265}),
    "vp8": ("a.webm", "libvpx", {"options": VP9}),
    "vp9": ("a.webm", "libvpx-vp9", {"options": VP9}),
    "vp9 with alpha": ("a.webm", "libvpx-vp9", {"options": VP9, "pix_fmt": "yuva420p"}),
    "vp9 in mp4": ("a.mp4", "libvpx-vp9", {"options": VP9}),
    "vp9 in ivf": ("a.ivf", "libvpx-vp9", {"options": VP9}),
    "av1": ("a.mp4", "libsvtav1", {"options": {"preset": "12"}, "hw": (64, 80)}),
    "av1 in webm": ("a.webm", "libsvtav1", {"options": {"preset": "12"}, "hw": (64, 80)}),
    "mpeg4": ("a.mp4", "mpeg4", {}),
    "mpeg4 B-frames in avi": ("a.avi", "mpeg4", {"options": {"bf": "2"}}),
    "mpeg4 interlaced": ("a.avi", "mpeg4", {"interlaced": True}),
    "mpeg4 cut": ("a.mp4", "mpeg4", {"cut": 5}),
    "mpeg2 in mpg": ("a.mpg", "mpeg2video", {}),
    "mpeg2 B-frames in ts": ("a.ts", "mpeg2video", {"options": {"bf": "2"}}),
    "mpeg2 interlaced in vob": ("a.vob", "mpeg2video", {"interlaced": True}),
    "mpeg2 interlaced in mxf": ("a.mxf", "mpeg2video", {"interlaced": True, "options": {"b": "5000000"}}),
    "mpeg1": ("a.mpg", "mpeg1video", {}),
    "dv": ("a.avi", "dvvideo", {"hw": PAL}),
    "dv alone": ("a.dv", "dvvideo", {"hw": PAL}),
    "prores": ("a.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}),
    "prores interlaced": ("a.mov", "prores_ks", {"pix_fmt": "yuv422p10le", "interlaced": True}),
    "prores with alpha": ("a.mov", "prores_ks", {"pix_fmt": "yuva444p10le"}),
    "dnxhd": ("a.mov", "dnxhd", {"pix_fmt": "yuv422p", "hw": (256, 256), "options": {"profile": "dnxhr_sq"}}),
    "mjpeg in avi": ("a.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    "mjpeg in mov, odd sides": ("a.mov", "mjpeg", {"pix_fmt": "yuvj444p", "hw": (47, 63)}),
    "wmv2": ("a.wmv", "wmv2", {}),
    "msmpeg4": ("a.asf", "msmpeg4", {}),
    "flash": ("a.flv", "flv", {}),
    "h263 in 3gp": ("a.3gp", "h263", {"hw": (144, 176)}),
    "realvideo": ("a.rm", "rv10", {"hw": (48, 64)}),
    "ffv1 grey": ("a.mkv", "ffv1", {"pix_fmt": "gray", "hw": (47, 63)}),
    "huffyuv": ("a.avi", "huffyuv", {"pix_fmt": "yuv422p"}),
    "png with alpha in mov": ("a.mov", "png", {"pix_fmt": "rgba"}),
    "animation": ("a.mov", "qtrle", {"pix_fmt": "rgb24"}),
    "raw": ("a.avi", "rawvideo", {"pix_fmt": "bgr24"}),
    "y4m": ("a.y4m", "wrapped_avframe", {}),
    "mpeg4 in nut": ("a.nut", "mpeg4", {"options": {"bf": "2"}}),
    "jpeg 2000 in mxf": ("a.mxf", "jpeg2000", {"pix_fmt": "yuv422p"}),
    "cineform": ("a.mov", "cfhd", {"pix_fmt": "yuv422p10le"}),
    "utvideo": ("a.avi", "utvideo", {"pix_fmt": "yuv422p"}),
    "snow": ("a.avi", "snow", {"options": {"strict": "experimental"}}),
    "cinepak": ("a.mov", "cinepak", {"pix_fmt": "rgb24"}),
    "svq1": ("a.mov", "svq1", {"pix_fmt": "yuv410p"}),
    "zmbv": ("a.avi", "zmbv", {"pix_fmt": "bgr0"}),
}  # fmt: skip
SOUND = {".mpg": "mp2", ".avi": "mp2", ".wmv": "mp2"}  # codecs
QUICK = (
    "h264 B-frames",
    "h264 B-frames cut",
    "h264 gaps in mkv",
    "h264 turned 90",
    "mpeg2 interlaced in vob",
    "vp9 with alpha",
)


def drawn(number: int, hw: tuple[int, int]) -> Image:
    """Return a frame whose brightness grows to the right and with its number, and whose colours differ by its half."""
    across, down = np.linspace(0, 60, hw[1])[None, :], np.linspace(0, 30, hw[0])[:, None]
    level = 30 + across + down + 5 * number
    return np.stack([level, np.broadcast_to(level - 15, hw), level + 20 * (down > 15)], axis=2).astype(np.uint8)


def write(folder: Path, kind: str) -> Path:
    name, codec, given = KINDS[kind]
    path, hw, fps = folder / name, given.get("hw", (48, 64)), given.get("fps", Fraction(25))
    whole = path.with_name(f"whole{path.suffix}") if given.get("cut") else path
    with av.open(str(whole), "w", options=given.get("mux", {})) as container:
        stream = container.add_stream(codec, rate=fps, options=given.get("options", {}))
        stream.height, stream.width = hw
        stream.pix_fmt = given.get("pix_fmt", "yuv420p")
        stream.time_base = 1 / fps
        stream.codec_context.gop_size = 10
        if given.get("interlaced"):
            stream.codec_context.flags |= INTERLACED_FLAGS
        if "rotation" in given:
            stream.set_display_rotation(given["rotation"])
        sound = container.add_stream(SOUND.get(path.suffix, "aac"), rate=48000) if given.get("sound") else None
        for number, pts in enumerate(given.get("pts", range(NUM_FRAMES))):
            frame = av.VideoFrame.from_ndarray(drawn(number, hw), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = pts + given.get("first", 0), 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            is_mp2 = sound.codec_context.name == "mp2"
            samples = np.zeros((1, 1024), np.int16 if is_mp2 else np.float32)
            for place in range(0, 48000 * given["sound"], 1024):
                silence = av.AudioFrame.from_ndarray(samples, format="s16" if is_mp2 else "fltp", layout="mono")
                silence.sample_rate, silence.pts = 48000, place
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path if whole == path else trimmed(whole, path, given["cut"], fps)


def trimmed(source: Path, target: Path, first: int, fps: Fraction) -> Path:
    """Copy a video from a frame on without coding it again: packets before are kept for the decoder, but not shown."""
    with av.open(str(source)) as given, av.open(str(target), "w", options={"use_editlist": "1"}) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                step = 1 / fps / packet.time_base
                packet.pts -= int(first * step)
                packet.dts -= int(first * step)
                packet.stream = stream
                container.mux(packet)
    return target


def by_ffmpeg(path: Path) -> tuple[list[Image], list[float]]:
    """Return the frames, turned upright and deinterlaced where they are interlaced, and their times from the first."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times_s = [float((frame.pts - frames[0].pts) * frame.time_base) for frame in frames if frame.pts is not None]
        if any(frame.interlaced_frame for frame in frames):
            graph = av.filter.Graph()
            buffer = graph.add_buffer(template=container.streams.video[0])
            graph.link_nodes(
                buffer, graph.add("bwdif", "send_frame:auto:interlaced"), graph.add("buffersink")
            ).configure()
            for frame in (*frames, None):
                graph.push(frame)
            frames = [graph.pull() for _ in frames]
        return [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in frames], times_s


def read(path: Path) -> list[ImageSource]:
    return list(frames_of(VideoSource(str(path), path)))


def require_equal(path: Path, kind: str) -> None:
    expected, times_s = by_ffmpeg(path)
    given = KINDS[kind][2]
    num_made = len(given.get("pts", range(NUM_FRAMES))) - given.get("cut", 0)
    assert len(expected) == num_made
    found = read(path)
    if (error := found[-1].error) is not None:
        assert len(found) == 1
        assert error.startswith(f"{path} ")
        assert "\n" not in error
        assert not video.has_pyav(), error  # PyAV reads all of them
        return
    first_s = found[0].frame.moment_s if found[0].frame is not None else 0.0
    assert len(found) == num_made
    if sorted(set(times_s)) != times_s or len(times_s) < num_made:  # streams without times
        times_s = [number / float(given.get("fps", 25)) for number in range(num_made)]
    step_s = min(b - a for a, b in itertools.pairwise(times_s)) if num_made > 1 else 1.0
    for number, (frame, pixels, time_s) in enumerate(zip(found, expected, times_s, strict=True)):
        assert frame.frame is not None
        assert frame.frame.index == number
        assert frame.frame.time_s is not None
        # FFmpeg's time of 0 may be that of the container, before the first frame.
        assert frame.frame.time_s - first_s == pytest.approx(time_s, abs=step_s / 2)
        assert frame.pixels is not None
        assert np.abs(frame.pixels.astype(int) - pixels).mean() < (1 if video.has_pyav() else 2)
        shown = np.rot90(drawn(number + given.get("cut", 0), given.get("hw", (48, 64))), given.get("rotation", 0) // 90)
        assert np.abs(pixels.astype(int) - shown).mean() < 20
    missing = [text for frame in found for text in frame.warnings if "missing" in text or "damaged" in text]
    assert missing == []


@pytest.fixture(params=["pyav", "opencv"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "opencv":
        monkeypatch.setattr(video, "has_pyav", lambda: False)
    return str(request.param)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.nightly) for k in KINDS])
def test_every_container_gives_the_frames_of_ffmpeg_or_a_reason(reader: str, kind: str, tmp_path: Path) -> None:
    try:
        path = write(tmp_path, kind)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write {kind}: {error}")
    require_equal(path, kind)


CUT = ("h264 with longer sound in mkv", "h264 with longer sound in flv", "wmv2 with longer sound", "flash")


@pytest.mark.parametrize("kind", CUT)
def test_file_that_is_cut_off_is_reported_also_where_sound_is_longer(reader: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    os.truncate(path, path.stat().st_size * 2 // 5)
    found = read(path)
    assert len(found) < NUM_FRAMES or "sound" in kind
    assert [text for frame in found for text in frame.warnings if "missing" in text]


@pytest.mark.parametrize("kind", ["h264 in ts", "h264 B-frames", "mpeg4 B-frames in avi", "hevc in ts"])
def test_damaged_video_prints_nothing(
    reader: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, kind)
    capfd.readouterr()
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(5):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, len(whole), len(whole) // 50)] = 0
        path.write_bytes(damaged[: random.integers(len(whole) // 2, len(whole))].tobytes())
        read(path)
    assert capfd.readouterr() == ("", "")
