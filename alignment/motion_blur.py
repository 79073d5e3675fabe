"""Motion blur: what moves is smeared while the shutter is open, in fast frames more than in slow ones.

Frames of unequal blur are hard to match, because the sharp edges of one lie beside smears of the other. Two frames are
blurred equally if each is also blurred as the other one is. How long the shutter is open shows in the slopes of the
picture: along the motion they are the flatter, the faster a frame moves. Across it they stay, while light, focus and
scale change the slopes in all directions alike.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from alignment.tracks import Floats
from alignment.transforms import transform_points

SHUTTERS = np.linspace(0, 1, 11)  # Exposure times that are tried, in frames.
SAMPLES_PER_PX = 4  # Samples of a blur along its motion.
NOISE_SIGMA_PX = 0.5  # Frames are smoothed by this much before their slopes are measured: interpolation smooths, too.
NOISE_SLOPE = 0.5  # Slope in grey levels per pixel that noise may have; flat pictures say nothing.
# Pairs count if their motions differ by at least LEAST_DIFFERENCE_PX, in pixels per frame of the size at which frames
# are matched; the blur of others hardly differs. Beyond MOST_DIFFERENCE_PX they count no more, so that one pair cannot
# decide alone.
LEAST_DIFFERENCE_PX, MOST_DIFFERENCE_PX = 2.0, 10.0
MOST_MOTION_PX = 128.0  # Longer motions, in pixels per frame of the compared frames, are mistakes of the transforms.
LEAST_PAIRS = 3  # Fewer pairs say nothing.
LEAST_INEQUALITY = 0.05  # Least mean of the squared logarithms; below it, frames are too equal to tell.
# An exposure time is believed if it leaves at most this share of the squared differences between frames. Where objects
# turn or the light changes, blur explains little of them.
MAX_UNEXPLAINED = 0.35


def measure_motion(transforms: Floats, t: int, point: Floats) -> Floats:
    """Return how far a point (2,) of a layer moves in frame t, (2,), in pixels per frame.

    transforms: (T, 3, 3), from frames to the layer's reference frame.
    """
    before, after = max(0, t - 1), min(len(transforms) - 1, t + 1)
    ends = [transform_points(np.linalg.inv(transforms[s]) @ transforms[t], point[None])[0] for s in (before, after)]
    return np.asarray((ends[1] - ends[0]) / max(1, after - before))


def limit_motion(motion: Floats) -> Floats:
    """Return a motion (2,), in pixels per frame; no motion if it is not finite or longer than MOST_MOTION_PX."""
    is_usable = bool(np.isfinite(motion).all()) and np.linalg.norm(motion) <= MOST_MOTION_PX
    return motion if is_usable else np.zeros(2)


def compare_motions(motion: Floats, other: Floats) -> float:
    """Return how much the blur of two motions (2,) differs, in pixels per frame. Back and forth blur alike."""
    return float(min(np.linalg.norm(motion - other), np.linalg.norm(motion + other)))


def blur_along(image: NDArray[np.uint8], motion: Floats) -> NDArray[np.uint8]:
    """Blur an image (H, W) or (H, W, C) as if it moved by (dx, dy) pixels while the shutter was open."""
    kernel = make_kernel(motion)
    if kernel.size == 1:
        return image
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE))


def make_kernel(motion: Floats) -> Floats:
    """Return the mean of bilinear samples along a motion (2,) around the middle, (K, K), with the sum 1."""
    reach = int(np.ceil(np.abs(motion).max() / 2))
    if reach == 0:
        return np.ones((1, 1), np.float32)
    steps = np.linspace(-0.5, 0.5, int(np.ceil(np.linalg.norm(motion) * SAMPLES_PER_PX)) + 1)
    x, y = (reach + steps * component for component in motion)
    pixels = np.arange(2 * reach + 1)
    along_x, along_y = (np.maximum(0, 1 - np.abs(places[:, None] - pixels)) for places in (x, y))
    kernel = along_y.T @ along_x
    return np.asarray(kernel / kernel.sum(), np.float32)


def compare_slopes(
    first: NDArray[np.uint8], second: NDArray[np.uint8], mask: NDArray[np.bool_], motion: Floats, second_motion: Floats
) -> Floats:
    """Return how much steeper the first of two grey images is along the motion than the second one.

    For each of SHUTTERS, it is the logarithm of a ratio, (K,), and 0 where both are blurred equally; slopes across the
    motion are divided out. mask (H, W): the pixels that both images (H, W) show. motion, second_motion: of each, in
    pixels per frame.
    """
    longer = max(motion, second_motion, key=np.linalg.norm)
    along = longer / max(float(np.linalg.norm(longer)), 1e-6)
    across = np.array([-along[1], along[0]])
    log_ratios = []
    for shutter in SHUTTERS:
        blurred = blur_along(first, shutter * second_motion), blur_along(second, shutter * motion)
        tensors = [measure_slopes(image, mask) for image in blurred]
        logs = [np.log(along @ tensor @ along) - np.log(across @ tensor @ across) for tensor in tensors]
        log_ratios.append(logs[0] - logs[1])
    return np.array(log_ratios)


def measure_slopes(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Floats:
    """Return the mean products of the slopes of a grey image (H, W) in a mask (H, W): the structure tensor (2, 2).

    In a direction d, the mean squared slope is d @ tensor @ d, in grey levels per pixel. NOISE_SLOPE is added in all
    directions.
    """
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), NOISE_SIGMA_PX)
    slopes = np.stack([np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *axis, scale=1 / 8)) for axis in ((1, 0), (0, 1))])
    inside = slopes[:, mask].astype(float)
    tensor = inside @ inside.T / max(1, inside.shape[1])
    return np.asarray(tensor + NOISE_SLOPE**2 * np.eye(2))


def choose_shutter(log_ratios: Floats, differences_px: Floats) -> float:
    """Return the exposure time in frames that makes the frames of N pairs equally sharp; 0 if none clearly does.

    log_ratios (N, K): see `compare_slopes`. differences_px (N,): see `compare_motions`.
    """
    counts = differences_px >= LEAST_DIFFERENCE_PX
    if counts.sum() < LEAST_PAIRS:
        return 0.0
    # The larger the difference of the motions, the more a pair tells about the exposure time.
    weights = np.minimum(differences_px[counts], MOST_DIFFERENCE_PX) ** 2
    squares = log_ratios[counts] ** 2
    unexplained = np.average(squares, axis=0, weights=weights)
    best = int(np.argmin(unexplained))
    is_clear = unexplained[0] > LEAST_INEQUALITY and unexplained[best] < MAX_UNEXPLAINED * unexplained[0]
    fits_most_pairs = (squares[:, best] < squares[:, 0]).mean() > 0.5
    return float(SHUTTERS[best]) if is_clear and fits_most_pairs else 0.0
