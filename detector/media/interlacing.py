"""Detection of interlaced video from its compressed data, without decoding it.

Only codecs that can hold interlaced frames are looked at. The answer is about the sequence: a sequence that allows
interlaced frames counts as interlaced even if some of its frames are not.
"""

from __future__ import annotations

from collections.abc import Iterator

_START = b"\x00\x00\x01"
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134)  # ITU-T H.264, 7.3.2.1.1
_DV = (b"dv", b"DV", b"AVd", b"avd")  # prefixes of the tags of DV, which is always interlaced (SMPTE 314M)
# The tags of one byte are stream types of MPEG transport streams (ISO/IEC 13818-1, table 2-34), and 7 that of FLV.
_H264 = (b"h264", b"avc1", b"avc3", b"x264", b"ai55", b"ai15", b"\x1b\0\0\0", b"\x07\0\0\0")
_HEVC = (b"hevc", b"hvc1", b"hev1", b"h265", b"\x24\0\0\0")
_MPEG2 = (b"mpg2", b"mpeg", b"mp2v", b"m2v1", b"\x02\0\0\0")
_MPEG4 = (b"fmp4", b"mp4v", b"xvid", b"divx", b"dx50", b"\x10\0\0\0")
_VC1, _JPEG = (b"wvc1", b"vc-1", b"wmva"), (b"mjpg", b"jpeg", b"avrn")
_PRORES_FLAGS = 20  # place of the frame flags: size and `icpf` (8 bytes), then 12 bytes of the header (SMPTE RDD 36)


def is_interlaced(data: bytes, fourcc: bytes) -> bool:
    """Return True if a packet or the extra data of a video codec says that frames may be interlaced.

    Args:
        data: a compressed packet, or the codec's extra data.
        fourcc: tag of the codec, four bytes.
    """
    tag = fourcc.lower()
    if tag in _H264:
        return any(_h264_sps_allows_fields(unit) for unit in _h264_parameter_sets(data))
    if tag in _HEVC:
        return any(_hevc_sps_has_fields(unit) for unit in _units(data) if unit[:1] and unit[0] >> 1 & 63 == 33)
    if tag in _MPEG2 or fourcc[:2] in (b"hd", b"xd", b"mx"):  # HDV, XDCAM and IMX in MOV
        return any(_mpeg2_has_fields(unit) for unit in _units(data) if unit[:1] == b"\xb5")
    if tag in _MPEG4:
        return any(_mpeg4_has_fields(unit) for unit in _units(data) if unit[:1] and 0x20 <= unit[0] <= 0x2F)
    if tag in _VC1:
        return any(_vc1_has_fields(unit) for unit in _units(data) if unit[:1] == b"\x0f")
    if tag[:2] == b"ap" and data[4:8] == b"icpf":
        return len(data) > _PRORES_FLAGS and data[_PRORES_FLAGS] >> 2 & 3 != 0
    if tag in _JPEG and (place := data.find(b"AVI1", 0, 64)) >= 0:
        return data[place + 4 : place + 5] not in (b"", b"\x00")  # polarity of the field (OpenDML AVI 1.02)
    return fourcc.startswith(_DV)


class _Bits:
    """Reader of bits, the highest first; bits behind the end are 0."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, num_bits: int) -> int:
        self._left -= num_bits
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << num_bits) - 1)

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb code (ITU-T H.264, 9.1)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("damaged Exp-Golomb code")
        return (1 << zeros) - 1 + self.take(zeros)


def _units(data: bytes) -> Iterator[bytes]:
    """Yield what lies between start codes, without them."""
    start = data.find(_START)
    while start >= 0:
        end = data.find(_START, start + 3)
        yield data[start + 3 : end if end >= 0 else len(data)]
        start = end


def _h264_parameter_sets(data: bytes) -> Iterator[bytes]:
    """Yield the sequence parameter sets of a packet with start codes, or of an `avcC` box (ISO/IEC 14496-15, 5.3.3)."""
    if data[:1] == b"\x01" and len(data) > 8:
        start = 6
        for _ in range(data[5] & 31):
            size = int.from_bytes(data[start : start + 2], "big")
            yield data[start + 2 : start + 2 + size]
            start += 2 + size
        return
    yield from (unit for unit in _units(data) if unit[:1] and unit[0] & 31 == 7)


def _unescaped(unit: bytes) -> bytes:
    """Remove the bytes that prevent start codes (ITU-T H.264, 7.4.1)."""
    return unit.replace(b"\x00\x00\x03", b"\x00\x00")


def _h264_sps_allows_fields(unit: bytes) -> bool:
    """Return True if `frame_mbs_only_flag` of a sequence parameter set is 0 (ITU-T H.264, 7.3.2.1.1)."""
    bits = _Bits(_unescaped(unit)[1:])
    try:
        profile = bits.take(8)
        bits.take(16)
        bits.golomb()
        if profile in _HIGH_PROFILES:
            _skip_high_profile(bits)
        bits.golomb()
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1)
            bits.golomb(), bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()
        bits.take(1)
        bits.golomb(), bits.golomb()
        return not bits.take(1)
    except ValueError:
        return False


def _skip_high_profile(bits: _Bits) -> None:
    chroma = bits.golomb()
    if chroma == 3:
        bits.take(1)
    bits.golomb(), bits.golomb()
    bits.take(1)
    if not bits.take(1):
        return
    for number in range(12 if chroma == 3 else 8):
        if bits.take(1):
            last = following = 8
            for _ in range(16 if number < 6 else 64):
                if following:
                    code = bits.golomb()
                    following = (last + (code + 1 >> 1 if code & 1 else -(code >> 1))) % 256
                last = following or last


def _hevc_sps_has_fields(unit: bytes) -> bool:
    """Return `general_interlaced_source_flag` of a sequence parameter set (ITU-T H.265, 7.3.3)."""
    body = _unescaped(unit)
    return len(body) > 8 and bool(body[8] & 0x40)


def _mpeg2_has_fields(unit: bytes) -> bool:
    """Return True if `progressive_sequence` of a sequence extension is 0 (ISO/IEC 13818-2, 6.2.2.3)."""
    return len(unit) > 2 and unit[1] >> 4 == 1 and not unit[2] & 0x08


def _vc1_has_fields(unit: bytes) -> bool:
    """Return the interlace flag of an advanced sequence header (SMPTE 421M, 6.1)."""
    bits = _Bits(_unescaped(unit)[1:])
    is_advanced = bits.take(2) == 3
    bits.take(2 + 3 + 3 + 5 + 1 + 12 + 12)
    bits.take(1)
    return is_advanced and bool(bits.take(1))


def _mpeg4_has_fields(unit: bytes) -> bool:
    """Return `interlaced` of a video object layer (ISO/IEC 14496-2, 6.2.3)."""
    bits = _Bits(unit[1:])
    bits.take(1 + 8)
    version = 1
    if bits.take(1):
        version = bits.take(4)
        bits.take(3)
    if bits.take(4) == 15:  # the pixel's aspect ratio follows
        bits.take(16)
    if bits.take(1):  # control parameters of the layer
        bits.take(2 + 1)
        if bits.take(1):
            bits.take(79)
    shape = bits.take(2)
    if shape == 3 and version != 1:  # grey-scale shape
        bits.take(4)
    bits.take(1)
    resolution = bits.take(16)
    bits.take(1)
    if bits.take(1):  # fixed rate: its increment has as many bits as the resolution needs
        bits.take(max((resolution - 1).bit_length(), 1))
    if shape == 0:
        bits.take(1 + 13 + 1 + 13 + 1)
    return bool(bits.take(1))
