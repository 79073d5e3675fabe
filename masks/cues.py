"""Compute cues that tell an object's pixels from those of the background: motion and colour, at a reduced size."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.transforms import resize_matrix, to_homogeneous
from media.flows import BACKWARD, FORWARD, STEPS
from media.images import Box, fit_size
from parallel.side_by_side import map_side_by_side, stream_side_by_side
from unwrap_utils import Video, warp_by_flow

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

MIN_SIDE_PX = 8  # Shortest side at which cues are computed, pixels.
LONG_EDGE_PX = 288  # Pixels of the long edge at which cues are computed: enough to decide, and fast.
DIFFERENCE_BINS = 10  # Number of bin edges of each quantity of the difference cue; one more bin is for unknown values.
# Blur of the difference cue's histogram, in bins: difference from the background's motion, from the object's motion
# (which is less exact), and from the background's colour, measured in two ways.
DIFFERENCE_BLUR = (0.5, 1.25, 0.35, 0.35)
BRIGHTNESS_WEIGHTS = np.array([0.3, 0.6, 0.1], np.float32)  # Weights of red, green and blue in the brightness.
# Smallest and largest ratio of a pixel's brightness to the background's that counts as a shadow or as noise.
MIN_BRIGHTNESS_RATIO, MAX_BRIGHTNESS_RATIO = 0.2, 1.05
COLOR_BINS = (22, 32, 32)  # Numbers of bins of L, a and b.
COLOR_BLUR = (0.8, 0.8, 0.8)  # Blur of the colour cue's histogram, in bins.


@dataclass
class Cue:
    """Index of each pixel's bin in a joint histogram of several quantities, such as motion and colour."""

    bin_indices: NDArray[np.int32]  # (T, h, w) index into the flattened histogram
    bin_counts: tuple[int, ...]  # number of bins of each quantity
    blur: tuple[float, ...]  # blur of the histogram along each quantity, in bins, because its counts are small


@dataclass
class SmallClip:
    """A clip reduced to the size at which cues are computed: T frames of h x w pixels."""

    rgb: NDArray[np.uint8]  # (T, h, w, 3)
    flow: Floats  # (2, T, h, w, 2) forward and backward flow, pixels (dx, dy) of the reduced size
    flow_valid: Floats  # (2, T, h, w) share of the full-size pixels whose flow is valid
    to_full: Floats  # (3, 3) transform from pixels of the reduced size to pixels of the working size

    @property
    def grid(self) -> Floats:
        """Positions (h, w, 2) of the pixels, as (x, y)."""
        height, width = self.rgb.shape[1:3]
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)

    def reduce_transforms(self, transforms: Floats) -> Floats:
        """Convert transforms (T, 3, 3) between pixels of the working size to pixels of the reduced size."""
        return np.linalg.inv(self.to_full) @ transforms @ self.to_full

    def warp_from_neighbour(self, values: Floats, direction: int, t: int) -> Floats:
        """Warp the values (h, w) of a neighbouring frame to frame t by the flow; direction: FORWARD or BACKWARD."""
        return warp_by_flow(values, self.flow[direction, t])


def shrink(values: NDArray, size: tuple[int, ...]) -> NDArray:
    """Reduce an image (H, W, ...) to the size (width, height) by averaging."""
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def shrink_video(video: Video, long_edge: int = LONG_EDGE_PX) -> SmallClip:
    """Reduce a video to a long edge of so many pixels, at which cues are computed; video on the CPU.

    The flow is averaged over the full-size pixels whose flow is valid.
    """
    frames, height, width = video.size
    size = fit_size((width, height), long_edge, MIN_SIDE_PX)
    scale = np.array([width / size[0], height / size[1]])
    flow = np.zeros((2, frames, size[1], size[0], 2), np.float32)
    valid = np.zeros((2, frames, size[1], size[0]), np.float32)

    def shrink_frame(t: int) -> NDArray:
        """Reduce the flow from frame t, and return the reduced frame."""
        for direction in (FORWARD, BACKWARD):
            full_valid = video.flow_valid[direction, t].numpy().astype(np.float32)
            full_flow = video.flow_steps[direction, t].numpy() * np.float32(video.flow_unit_px[direction, t])
            valid[direction, t] = shrink(full_valid, size)
            mean_flow = shrink(full_flow * full_valid[..., None], size)
            flow[direction, t] = mean_flow / np.maximum(valid[direction, t], 1e-3)[..., None] / scale
        return shrink(video.frames[t].numpy(), size)

    rgb = np.stack(list(stream_side_by_side(shrink_frame, range(frames))))
    return SmallClip(rgb, flow, valid, resize_matrix(size, (width, height)))


def motion_difference(clip: SmallClip, transforms: Floats) -> Floats:
    """Return the distance (T, h, w) in pixels between the flow and the motion of a layer.

    It is the mean of the forward and the backward flow, and NaN where neither is known. transforms: (T, 3, 3) of the
    layer, for pixels of the reduced size.
    """
    frames, grid = len(clip.rgb), clip.grid
    pixels = to_homogeneous(grid)

    def measure_frame(t: int) -> Floats:
        """Return the distance (h, w) in frame t."""
        total, count = np.zeros((2, *grid.shape[:2]), np.float32)
        for direction, step in enumerate(STEPS):
            if not 0 <= t + step < frames:
                continue
            moved = pixels @ (np.linalg.inv(transforms[t + step]) @ transforms[t]).T.astype(np.float32)
            difference = grid + clip.flow[direction, t] - moved[..., :2] / moved[..., 2:]
            is_known = clip.flow_valid[direction, t] >= 0.5
            total += np.where(is_known, np.sqrt(np.square(difference).sum(-1)), 0)
            count += is_known
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    return np.stack(map_side_by_side(measure_frame, range(frames)))


def background_differences(clip: SmallClip, transforms: Floats, is_background: Flags) -> tuple[Floats, Floats]:
    """Compare each pixel with the background's mean colour, which is averaged over all frames.

    Returns two differences (T, h, w), both NaN where the background is unknown. The first is the difference in L, a
    and b. The second is the difference in red, green and blue after the expected colour is darkened to the pixel's
    brightness, so that it is small in shadows. Both are relative to the usual deviation of red, green and blue at that
    point of the background.

    transforms: (T, 3, 3) of the background. is_background: (T, h, w), True for pixels that surely show the background.
    """
    rgb = clip.rgb.astype(np.float32)
    frames, height, width = rgb.shape[:3]
    to_canvas, canvas_size = background_canvas(transforms, (height, width))
    boxes = [canvas_box(matrix, (height, width), canvas_size) for matrix in to_canvas]

    def warp_frame(t: int) -> tuple[Floats, Floats]:
        """Return frame t in its box of the canvas and its weight: 1 where it surely shows the background, else 0.

        Frames are warped again in every pass, because this is cheaper than keeping them all.
        """
        rows, columns = boxes[t]
        matrix = translation(-columns.start, -rows.start) @ to_canvas[t]
        size = (columns.stop - columns.start, rows.stop - rows.start)
        is_known = cv2.warpPerspective(is_background[t].astype(np.float32), matrix, size) > 0.99
        return cv2.warpPerspective(rgb[t], matrix, size), is_known[..., None].astype(np.float32)

    def average(weigh: Callable[[int], tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
        """Return the weighted mean of values in the boxes of all frames, and the sum of the weights, on the canvas."""
        return average_images(zip(boxes, stream_side_by_side(weigh, range(frames)), strict=True), canvas_size)

    def weigh_deviation(t: int) -> tuple[Floats, Floats]:
        color, weight = warp_frame(t)
        return np.abs(color - mean[boxes[t]]), weight

    def weigh_robustly(t: int) -> tuple[Floats, Floats]:
        """Return the colours of frame t, with less weight on those that differ from the mean."""
        color, weight = warp_frame(t)
        return color, weight / (1 + np.square((color - mean[boxes[t]]) / deviation[boxes[t]]))

    mean, count = average(warp_frame)
    for _ in range(2):  # Colours that differ from the mean get less weight, so that single wrong frames do not matter.
        deviation = average(weigh_deviation)[0] + 1
        mean = average(weigh_robustly)[0]
    is_filled = (count[..., 0] >= 1).astype(np.float32)
    mean_and_deviation = np.dstack((mean, deviation.mean(-1)))

    def compare(t: int) -> list[Floats]:
        """Return the two differences of frame t."""
        from_canvas = np.linalg.inv(to_canvas[t])
        background: NDArray = cv2.warpPerspective(mean_and_deviation, from_canvas, (width, height))
        is_known = cv2.warpPerspective(is_filled, from_canvas, (width, height)) > 0.99
        differences = compare_colors(rgb[t], background[..., :3])
        return [np.where(is_known, each / (background[..., 3] + 3), np.nan) for each in differences]

    first, second = zip(*stream_side_by_side(compare, range(frames)), strict=True)
    return np.stack(first), np.stack(second)


def compare_colors(image: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """Return the two smoothed differences (h, w) of an image (h, w, 3) from the expected one.

    The first is in L, a and b, the second in red, green and blue after the expected image has the image's brightness.
    """
    in_lab = np.abs(to_lab(image) - to_lab(expected)).mean(-1)
    without_brightness = np.abs(image - match_brightness(expected, image)).mean(-1)
    return cv2.GaussianBlur(in_lab, (0, 0), 1), cv2.GaussianBlur(without_brightness, (0, 0), 1)


def background_canvas(transforms: Floats, size: tuple[int, int]) -> tuple[Floats, tuple[int, int]]:
    """Return transforms (T, 3, 3) from pixels of each frame to a canvas, and the canvas's (width, height).

    The canvas covers the usual position of the frames and one frame's width and height around it; its sides are at most
    six times those of a frame. transforms: (T, 3, 3) of the background. size: (height, width) of the frames.
    """
    height, width = size
    corners = to_homogeneous(np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    corners = corners @ transforms.transpose(0, 2, 1)
    centers = np.median(corners[..., :2] / corners[..., 2:], axis=1)
    low, high = centers.min(0) - [width, height], centers.max(0) + [width, height]
    canvas_width, canvas_height = np.minimum(np.ceil(high - low), [6 * width, 6 * height]).astype(int)
    return translation(-low[0], -low[1]) @ transforms, (int(canvas_width), int(canvas_height))


def canvas_box(matrix: Floats, size: tuple[int, int], canvas_size: tuple[int, int]) -> Box:
    """Return the rows and columns of a canvas of (width, height) in which a frame of (height, width) lies.

    matrix (3, 3): from pixels of the frame to the canvas.
    """
    height, width = size
    corners = to_homogeneous(np.array([[-1, -1], [width, -1], [-1, height], [width, height]], float)) @ matrix.T
    if (corners[:, 2] <= 0).any():  # A corner lies behind the camera, so the frame has no outline on the canvas.
        return slice(0, canvas_size[1]), slice(0, canvas_size[0])
    places = corners[:, :2] / corners[:, 2:]
    low = np.floor(places.min(0)).clip(0, np.array(canvas_size) - 1).astype(int)
    high = np.ceil(places.max(0)).clip(low + 1, canvas_size).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def translation(x: float, y: float) -> Floats:
    """Return the transform (3, 3) that moves positions by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def to_lab(rgb: NDArray) -> Floats:
    """Convert an image (h, w, 3) from red, green and blue to L, a and b, all from 0 to 255."""
    return cv2.cvtColor(rgb.round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2LAB).astype(np.float32)


def match_brightness(image: Floats, target: Floats) -> Floats:
    """Scale an image (h, w, 3) to the smoothed brightness of another, as far as a shadow can change it."""
    brightness, target_brightness = (cv2.GaussianBlur(rgb @ BRIGHTNESS_WEIGHTS, (0, 0), 1) for rgb in (image, target))
    ratio = target_brightness / np.maximum(brightness, 4)
    return image * ratio.clip(MIN_BRIGHTNESS_RATIO, MAX_BRIGHTNESS_RATIO)[..., None]


def average_images(
    images: Iterable[tuple[Box, tuple[Floats, Floats]]], canvas_size: tuple[int, int]
) -> tuple[Floats, Floats]:
    """Return the weighted mean (H, W, 3) of images on a canvas of (width, height), and the sum of the weights.

    images: for each image its place on the canvas, its colours (h, w, 3) and its weights (h, w, 1 or 3).
    """
    shape = (canvas_size[1], canvas_size[0], 3)
    total, total_weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for box, (image, weight) in images:
        total[box] += image * weight
        total_weight[box] += weight
    return total / np.maximum(total_weight, 1e-3), total_weight


def difference_cue(clip: SmallClip, background: Floats, foreground: Floats, is_background: Flags) -> Cue:
    """Return the joint cue of four differences: from the background's motion, the object's motion, and two of colour.

    The differences are in one histogram because they depend on each other. For example, a neck that bends moves neither
    like the body nor like the background. Taken separately, one motion would speak against the object and one for it.

    background, foreground: transforms (T, 3, 3), for pixels of the reduced size. is_background: (T, h, w), True for
    pixels that surely show the background.
    """
    motions = (motion_difference(clip, transforms) for transforms in (background, foreground))
    differences = (*motions, *background_differences(clip, background, is_background))
    count = DIFFERENCE_BINS + 2

    def bin_frame(t: int) -> NDArray[np.int32]:
        """Return the index (h, w) of each pixel's bin in the joint histogram, in frame t."""
        indices = np.zeros(clip.rgb.shape[1:3], np.int32)
        for difference in differences:
            indices = indices * count + bin_differences(difference[t])
        return indices

    bin_indices = np.stack(map_side_by_side(bin_frame, range(len(clip.rgb))))
    return Cue(bin_indices, (count,) * len(DIFFERENCE_BLUR), DIFFERENCE_BLUR)


def color_cue(clip: SmallClip) -> Cue:
    """Return the cue of the pixels' colour."""
    return Cue(bin_colors(clip.rgb), COLOR_BINS, COLOR_BLUR)


def bin_differences(values: Floats) -> NDArray[np.int32]:
    """Return the index of each difference's bin on a logarithmic scale; unknown values (NaN) get a last bin."""
    edges = np.geomspace(0.05, 50, DIFFERENCE_BINS)
    return np.where(np.isnan(values), DIFFERENCE_BINS + 1, np.digitize(values, edges)).astype(np.int32)


def bin_colors(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the index (T, h, w) of each pixel's bin in a histogram of L, a and b."""
    lab = np.stack(map_side_by_side(to_lab, rgb)).astype(np.int32)
    steps = [256 // bins + (256 % bins > 0) for bins in COLOR_BINS]
    return (lab[..., 0] // steps[0] * COLOR_BINS[1] + lab[..., 1] // steps[1]) * COLOR_BINS[2] + lab[..., 2] // steps[2]
