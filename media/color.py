"""The colours of decoded video frames: the right matrix and range, and high dynamic range brought to BT.709."""

from functools import cache
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

Picture = NDArray[Any]  # (H, W, C) of uint8 or uint16

# Numbers of the H.273 standard for the matrix and the transfer of a video.
UNKNOWN_MATRICES = (2, 3)
# Of these, the numbers by which FFmpeg's converter knows the matrices.
BT709_MATRIX, BT601_MATRIX = 1, 5
MATRICES = {1: BT709_MATRIX, 4: 4, 7: 7, 9: 9, 10: 9}
PQ_TRANSFER, HLG_TRANSFER = 16, 18
HDR_NAMES = {PQ_TRANSFER: "PQ", HLG_TRANSFER: "HLG"}

HD_WIDTH_PX, SD_HEIGHT_PX = 1280, 576  # A video without tags is BT.709 from this width, or above this height.
ACCURATE = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
BITS_8, CODES_16 = 8, 65536

PQ_NITS = 10000.0  # luminance of the largest code of PQ
PEAK_NITS = 1000.0  # luminance of the brightest light that is kept apart, and of the largest code of HLG
WHITE_NITS = 203.0  # luminance of a white page in HDR (BT.2408); it becomes the white of BT.709
HLG_GAMMA = 1.2  # of a display of 1000 nits (BT.2100)
DISPLAY_GAMMA = 2.4  # of BT.1886, for which BT.709 video is made
BT2020_LUMINANCE = np.array([0.2627, 0.678, 0.0593], np.float32)
BT2020_TO_BT709 = np.array(  # BT.2087
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def bit_depth(frame: av.VideoFrame) -> int:
    """Return the number of bits of a frame's finest component."""
    return max(component.bits for component in frame.format.components)


def find_matrix(frame: av.VideoFrame) -> int:
    """Return the matrix between YUV and RGB that a video states, else that of its size: BT.709 for HD, else BT.601."""
    if frame.colorspace in UNKNOWN_MATRICES:
        is_hd = frame.width >= HD_WIDTH_PX or frame.height > SD_HEIGHT_PX
        return BT709_MATRIX if is_hd else BT601_MATRIX
    return MATRICES.get(int(frame.colorspace), BT601_MATRIX)


def to_rgb(frame: av.VideoFrame) -> Picture:
    """Return a decoded frame as (H, W, 3) in R'G'B' of BT.709: uint8, or uint16 if it has more than 8 bits.

    High dynamic range (PQ and HLG of BT.2100) is brought to BT.709 with 8 bits.
    """
    is_hdr = int(frame.color_trc) in HDR_NAMES
    is_deep = is_hdr or bit_depth(frame) > BITS_8
    rgb: Picture = frame.to_ndarray(
        format="rgb48le" if is_deep else "rgb24",
        src_colorspace=find_matrix(frame),
        dst_colorspace=BT709_MATRIX,
        interpolation=ACCURATE,
    )
    return tone_map(rgb, int(frame.color_trc)) if is_hdr else rgb


def pq_to_nits(signal: NDArray) -> NDArray:
    """Return the luminance of PQ codes in [0, 1], in nits (SMPTE ST 2084)."""
    root = signal ** (1 / 78.84375)
    return PQ_NITS * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)


def nits_to_pq(nits: NDArray) -> NDArray:
    """Return the PQ codes in [0, 1] of luminances in nits (SMPTE ST 2084)."""
    root = (nits / PQ_NITS) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375


def hlg_to_scene(signal: NDArray) -> NDArray:
    """Return the light of the scene, in [0, 1], of HLG codes in [0, 1] (BT.2100)."""
    bright = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, bright)


def compress_highlights(nits: NDArray) -> NDArray:
    """Return luminances up to PEAK_NITS as luminances up to WHITE_NITS, darker ones unchanged (the EETF of BT.2390)."""
    largest_pq = float(nits_to_pq(np.array(PEAK_NITS)))
    signal = np.minimum(nits_to_pq(nits) / largest_pq, 1)
    top = float(nits_to_pq(np.array(WHITE_NITS))) / largest_pq
    knee = 1.5 * top - 0.5
    t = np.clip((signal - knee) / (1 - knee), 0, 1)
    curve = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    return pq_to_nits(np.where(signal < knee, signal, curve) * largest_pq)


@cache
def light_of_codes(transfer: int) -> NDArray[np.float32]:
    """Return the light of each code of 16 bits: in nits for PQ, that of the scene in [0, 1] for HLG."""
    codes = np.arange(CODES_16) / (CODES_16 - 1)
    return (pq_to_nits(codes) if transfer == PQ_TRANSFER else hlg_to_scene(codes)).astype(np.float32)


@cache
def highlight_factors() -> NDArray[np.float32]:
    """Return the factor by which `compress_highlights` changes each luminance, by the root of its share of the peak."""
    nits = PEAK_NITS * np.linspace(0, 1, 4096) ** 2
    return (compress_highlights(nits) / np.maximum(nits, 1e-6)).astype(np.float32)


def tone_map(rgb: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """Bring high dynamic range R'G'B' (H, W, 3) of BT.2020 to BT.709 with 8 bits.

    Light up to PEAK_NITS is compressed by the EETF of BT.2390, by the largest of red, green and blue, which keeps hues.
    Then the primaries are those of BT.709 (BT.2087), and the transfer is the inverse of BT.1886.
    """
    light = light_of_codes(transfer)[rgb]
    if transfer == HLG_TRANSFER:  # The display makes bright scenes brighter (the OOTF of BT.2100).
        luminance = np.maximum(light @ BT2020_LUMINANCE, 1e-9)
        light = light * (PEAK_NITS * luminance ** (HLG_GAMMA - 1))[..., None]
    factors = highlight_factors()
    share = np.minimum(light.max(-1) / PEAK_NITS, 1)
    factor = factors[np.rint(np.sqrt(share) * (len(factors) - 1)).astype(int)]
    factor /= np.maximum(light.max(-1) / PEAK_NITS, 1)  # Light above the peak is clipped, with its hue.
    linear = (light * (factor / WHITE_NITS)[..., None]) @ BT2020_TO_BT709.T
    return np.rint(np.clip(linear, 0, 1) ** (1 / DISPLAY_GAMMA) * 255).astype(np.uint8)
