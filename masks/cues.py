"""What tells an object's pixels from the background's: how they move, what they look like, at a small size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.transforms import resize_matrix, to_homogeneous
from media.flows import BACKWARD, FORWARD, STEPS
from unwrap_utils import Video, warp_by_flow

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

LONG_EDGE_PX = 192  # cues are weighed at this size: enough to decide, and fast
DIFFERENCE_BINS = 10
DIFFERENCE_BLUR = (0.5, 1.25, 0.35, 0.35)  # in bins: motion against the background's, the object's (rough), two of look
BRIGHTNESS = np.float32([0.3, 0.6, 0.1])  # of red, green, blue
DARKEST, BRIGHTEST = 0.2, 1.05  # of the background's brightness that a shadow on it may have, and that noise may
COLOR_BINS = (22, 32, 32)  # of L, a, b
COLOR_BLUR = (0.8, 0.8, 0.8)


@dataclass
class Cue:
    """What each pixel is like, as numbers of the cells of a histogram over several quantities."""

    codes: NDArray[np.int32]  # (T, h, w)
    bins: tuple[int, ...]  # of each quantity
    blur: tuple[float, ...]  # of the histogram, in bins: counts are few


@dataclass
class SmallClip:
    """A clip at the size at which cues are weighed, T frames of h x w pixels."""

    rgb: NDArray[np.uint8]  # (T, h, w, 3)
    flow: Floats  # (2, T, h, w, 2) pixels of this size
    flow_valid: Floats  # (2, T, h, w) share of valid pixels
    to_full: NDArray[np.float64]  # (3, 3) its pixels to those of the working size

    @property
    def grid(self) -> Floats:
        """(h, w, 2) pixel positions."""
        height, width = self.rgb.shape[1:3]
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)

    def reduce_transforms(self, transforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transforms (T, 3, 3) of full pixels as transforms of this clip's pixels."""
        return np.linalg.inv(self.to_full) @ transforms @ self.to_full

    def warp_from_neighbour(self, values: Floats, direction: int, t: int) -> Floats:
        """What `values` (h, w) of the neighbouring frame show at the pixels of frame t."""
        return warp_by_flow(values, self.flow[direction, t])


def shrink(values: NDArray, size: tuple[int, int]) -> NDArray:
    """An image (H, W, ...) at (width, height), averaged."""
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def small_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) at which cues are weighed."""
    scale = min(1.0, LONG_EDGE_PX / max(height, width))
    return max(8, round(width * scale)), max(8, round(height * scale))


def shrink_video(video: Video) -> SmallClip:
    """A video on the CPU, shrunk."""
    frames, height, width = video.size
    size = small_size(height, width)
    scale = np.array([width / size[0], height / size[1]])
    flow = np.zeros((2, frames, size[1], size[0], 2), np.float32)
    valid = np.zeros((2, frames, size[1], size[0]), np.float32)
    for direction in (FORWARD, BACKWARD):
        for t in range(frames):
            known = video.flow_valid[direction, t].numpy().astype(np.float32)
            moved = video.flow_steps[direction, t].numpy() * np.float32(video.flow_unit_px[direction, t])
            valid[direction, t] = shrink(known, size)
            average = shrink(moved * known[..., None], size) / np.maximum(valid[direction, t], 1e-3)[..., None]
            flow[direction, t] = average / scale
    rgb = np.stack([shrink(frame, size) for frame in video.frames.numpy()])
    return SmallClip(rgb, flow, valid, resize_matrix(size, (width, height)))


def motion_difference(clip: SmallClip, transforms: NDArray[np.float64]) -> Floats:
    """(T, h, w) pixels by which the flow differs from a layer's motion, mean of both directions; NaN if unknown."""
    frames = len(clip.rgb)
    total, count = np.zeros(clip.rgb.shape[:3], np.float32), np.zeros(clip.rgb.shape[:3], np.float32)
    here = to_homogeneous(clip.grid)
    for direction, step in enumerate(STEPS):
        for t in range(max(0, -step), min(frames, frames - step)):
            there = here @ (np.linalg.inv(transforms[t + step]) @ transforms[t]).T.astype(np.float32)
            miss = clip.grid + clip.flow[direction, t] - there[..., :2] / there[..., 2:]
            known = clip.flow_valid[direction, t] >= 0.5
            total[t] += np.where(known, np.sqrt(np.square(miss).sum(-1)), 0)
            count[t] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def background_differences(clip: SmallClip, transforms: NDArray[np.float64], outside: Flags) -> tuple[Floats, Floats]:
    """Two (T, h, w): how unlike the background seen at other times a pixel is; NaN if unknown.

    In L, a, b; and in red, green, blue, where what is expected is first darkened like the pixel, as a shadow would do
    it. Both are relative to how much the place's red, green and blue usually deviate.
    outside (T, h, w): pixels that surely show the background.
    """
    rgb = clip.rgb.astype(np.float32)
    frames, height, width = rgb.shape[:3]
    corners = to_homogeneous(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    places = corners @ transforms.transpose(0, 2, 1)
    places = np.median(places[..., :2] / places[..., 2:], axis=1)  # the frames' middles
    low, high = places.min(0) - [width, height], places.max(0) + [width, height]
    canvas = tuple(np.minimum(np.ceil(high - low), [6 * width, 6 * height]).astype(int))
    onto = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ transforms

    def unwrapped() -> Iterator[tuple[Floats, Floats]]:
        """Every frame on the canvas, and 1 where it surely shows the background; one at a time, warping is cheap."""
        for picture, sure, matrix in zip(rgb, outside, onto, strict=True):
            known = cv2.warpPerspective(sure.astype(np.float32), matrix, canvas) > 0.99
            yield cv2.warpPerspective(picture, matrix, canvas), known[..., None].astype(np.float32)

    mean, count = weighted_mean((color, known) for color, known in unwrapped())
    for _ in range(2):  # once more with what differs left out: a robust mean
        spread = weighted_mean((np.abs(color - mean), known) for color, known in unwrapped())[0] + 1
        mean, _ = weighted_mean(
            (color, known / (1 + np.square((color - mean) / spread))) for color, known in unwrapped()
        )
    result = np.empty((2, frames, height, width), np.float32)
    seen = (count[..., 0] >= 1).astype(np.float32)
    usual = spread.mean(-1)
    for t in range(frames):
        back = np.linalg.inv(onto[t])
        values = cv2.warpPerspective(np.dstack((mean, usual)), back, (width, height))
        there = cv2.warpPerspective(seen, back, (width, height)) > 0.99
        expected = values[..., :3]
        apart = (
            np.abs(to_lab(rgb[t]) - to_lab(expected)).mean(-1),
            np.abs(rgb[t] - darken_like(expected, rgb[t])).mean(-1),
        )
        for number, away in enumerate(apart):
            result[number, t] = np.where(there, cv2.GaussianBlur(away, (0, 0), 1) / (values[..., 3] + 3), np.nan)
    return result[0], result[1]


def to_lab(picture: NDArray) -> Floats:
    """(h, w, 3) L, a, b, from 0 to 255, of red, green, blue from 0 to 255."""
    return cv2.cvtColor(picture.round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2LAB).astype(np.float32)


def darken_like(picture: Floats, like: Floats) -> Floats:
    """A picture (h, w, 3) with the smoothed brightness of another, as far as a shadow can give it."""
    here, there = (cv2.GaussianBlur(each @ BRIGHTNESS, (0, 0), 1) for each in (picture, like))
    return picture * (there / np.maximum(here, 4)).clip(DARKEST, BRIGHTEST)[..., None]


def weighted_mean(pictures: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Weighted mean of pictures (h, w, C) with weights (h, w, 1 or C), and the sum of the weights."""
    total, weight = np.float32(0), np.float32(0)
    for picture, share in pictures:
        total, weight = total + picture * share, weight + share
    return total / np.maximum(weight, 1e-3), weight


def difference_cue(clip: SmallClip, background: NDArray, foreground: NDArray, outside: Flags) -> Cue:
    """How a pixel differs from the background's motion, the object's motion and the background's two looks, together.

    Together, because they go together: a neck that bends moves unlike the body's transform and unlike the background;
    seen one by one these speak for and against it. background, foreground: transforms (T, 3, 3);
    outside (T, h, w): pixels that surely show the background.
    """
    motions = (motion_difference(clip, each) for each in (background, foreground))
    codes, count = np.zeros(clip.rgb.shape[:3], np.int32), DIFFERENCE_BINS + 2
    for quantity in (*motions, *background_differences(clip, background, outside)):
        codes = codes * count + bin_differences(quantity)
    return Cue(codes, (count,) * len(DIFFERENCE_BLUR), DIFFERENCE_BLUR)


def color_cue(clip: SmallClip) -> Cue:
    """The colour of a pixel."""
    return Cue(color_bins(clip.rgb), COLOR_BINS, COLOR_BLUR)


def bin_differences(values: Floats) -> NDArray[np.int32]:
    """Differences as numbers of bins, logarithmic; the unknown ones get the last, beyond the largest."""
    edges = np.geomspace(0.05, 50, DIFFERENCE_BINS)
    return np.where(np.isnan(values), DIFFERENCE_BINS + 1, np.digitize(values, edges)).astype(np.int32)


def color_bins(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(T, h, w) number of the colour's bin in L, a, b."""
    lab = np.stack([to_lab(frame) for frame in rgb]).astype(np.int32)
    steps = [256 // bins + (256 % bins > 0) for bins in COLOR_BINS]
    return (lab[..., 0] // steps[0] * COLOR_BINS[1] + lab[..., 1] // steps[1]) * COLOR_BINS[2] + lab[..., 2] // steps[2]
