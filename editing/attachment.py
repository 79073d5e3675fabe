"""The mapping of an object beyond its outline, for paint that leaves the silhouette: a hat, horns, a cape.

Beyond the outline nothing is learned of an object. There its mapping is continued by the motion of its nearest parts:
at each pixel an affine map is fitted to the mapping of the object's pixels around it, in the smallest window that holds
enough of them (moving least squares, Schaefer et al. 2006), and far away a map that holds for most of the object. So a
hat turns with the head, and not with the body or the legs."""

from collections.abc import Collection
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from rendering.frames import VISIBLE, Floats, Frame

Flags = NDArray[np.bool_]

LONG_EDGE_PX = 192  # Pixels of the long edge at which the continued mapping is computed; it is smooth.
WINDOWS = (0.045, 0.1, 0.22)  # Standard deviations of the windows, as shares of the long edge.
ENOUGH = 0.02  # Share of a window that the object must fill.
STIFFNESS = 0.1  # Weight, relative to the window's variance, with which a fit tends to the map of the whole object.
NOWHERE = 100.0  # A uv that no atlas has; atlases cover [-1, 1].
LEAST_AREA = 0.0005  # Share of the frame below which an object is not there.
FIT_ROUNDS = 10  # Number of times that the map of the whole object is fitted.
# Error, as a multiple of the median error, with which a pixel has half of the weight in the next round.
OUTLIER_ERROR = 0.5
LEAST_ERROR = 1e-6  # In units of uv: smaller errors are those of rounding.
MOST_FIT_PIXELS = 10_000  # Most pixels to which it is fitted; of more, every n-th is taken.


def attach_paint(frame: Frame, layers: Collection[int]) -> Frame:
    """Return a frame in which the mapping of some objects is continued beyond their outlines.

    Where the frame does not show an object, its uv is NOWHERE, so that its paint is gone, too.
    """
    if not layers:
        return frame
    uv = frame.uv.copy()
    for layer in layers:
        uv[layer] = continue_mapping(frame, layer)
    return replace(frame, uv=uv)


def shows_object(frame: Frame, layer: int) -> bool:
    """Return whether a frame shows an object, so that paint can be attached to it."""
    return bool((frame.visibility[layer] > VISIBLE).mean() >= LEAST_AREA)


def continue_mapping(frame: Frame, layer: int) -> Floats:
    """Return the uv (H, W, 2) of an object everywhere in a frame: its own where it is visible, continued elsewhere.

    If the frame does not show the object, the uv is NOWHERE.
    """
    uv = frame.uv[layer]
    if not shows_object(frame, layer):
        return np.full_like(uv, NOWHERE)
    is_known = frame.visibility[layer] > VISIBLE
    height, width = is_known.shape
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    whole = fit_affine_robustly(grid[is_known], uv[is_known])
    base = np.dstack((grid, np.ones((height, width)))) @ whole
    rest = continue_field(uv - base, is_known)
    return np.where(is_known[..., None], uv, base + rest).astype(np.float32)


def fit_affine_robustly(points: Floats, values: Floats) -> Floats:
    """Return the affine map (3, 2) from points (n, 2) to values (n, 2) that holds for most of the points.

    Legs that swing must not turn the hat. So points with large errors get less weight (Cauchy; iteratively reweighted
    least squares).
    """
    step = -(-len(points) // MOST_FIT_PIXELS)
    points, values = points[::step], values[::step]
    homogeneous = np.column_stack((points, np.ones(len(points))))
    weights, result = np.ones(len(values)), np.zeros((3, 2))
    for _ in range(FIT_ROUNDS):
        root = np.sqrt(weights)[:, None]
        result = np.asarray(np.linalg.lstsq(root * homogeneous, root * values, rcond=None)[0], float)
        errors = np.linalg.norm(homogeneous @ result - values, axis=1)
        weights = 1 / (1 + (errors / max(OUTLIER_ERROR * float(np.median(errors)), LEAST_ERROR)) ** 2)
    return result


def continue_field(values: Floats, is_known: Flags) -> Floats:
    """Continue a field (H, W, C) beyond its known pixels (H, W) by local affine fits; it falls to 0 far away."""
    height, width = is_known.shape
    scale = min(1.0, LONG_EDGE_PX / max(height, width))
    size = max(2, round(width * scale)), max(2, round(height * scale))
    weight = shrink(is_known.astype(np.float64), size)
    known_values = shrink(np.where(is_known[..., None], values, 0), size)  # weighted sums over the known pixels
    # Positions from the middle, so that their squares keep their digits with 32 bits.
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) - side / 2 for side in size))
    result: Floats = np.zeros((size[1], size[0], values.shape[2]), np.float32)
    for window in reversed(WINDOWS):  # from coarse to fine
        sigma = window * max(size)
        fitted, filled = fit_windows(known_values, weight, x, y, sigma)
        share = np.clip(filled / ENOUGH - 0.5, 0, 1)[..., None]
        result = result * (1 - share) + fitted * share
    return np.asarray(cv2.resize(result, (width, height), interpolation=cv2.INTER_LINEAR))


def shrink(values: Floats, size: tuple[int, int]) -> Floats:
    """Reduce an image (H, W) or (H, W, C) to the size (width, height) by averaging."""
    return np.asarray(cv2.resize(np.ascontiguousarray(values, np.float32), size, interpolation=cv2.INTER_AREA))


def fit_windows(values: Floats, weight: Floats, x: Floats, y: Floats, sigma: float) -> tuple[Floats, Floats]:
    """Fit an affine function to a weighted field in a Gaussian window around each pixel.

    Returns its value at the pixel (h, w, C), and the mean weight in the window (h, w).

    values (h, w, C): already multiplied by the weight (h, w). x, y (h, w): positions of the pixels.
    """

    def blur(image: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))

    total = blur(weight)
    safe = np.maximum(total, 1e-9)
    mean_x, mean_y = blur(weight * x) / safe, blur(weight * y) / safe
    floor = STIFFNESS * sigma**2
    var_x = blur(weight * x * x) / safe - mean_x**2 + floor
    var_y = blur(weight * y * y) / safe - mean_y**2 + floor
    cov = blur(weight * x * y) / safe - mean_x * mean_y
    determinant = np.maximum(var_x * var_y - cov**2, floor**2)
    fitted = np.empty_like(values)
    for channel in range(values.shape[2]):
        field = values[..., channel]
        mean = blur(field) / safe
        with_x, with_y = blur(field * x) / safe - mean * mean_x, blur(field * y) / safe - mean * mean_y
        slope_x = (with_x * var_y - with_y * cov) / determinant
        slope_y = (with_y * var_x - with_x * cov) / determinant
        fitted[..., channel] = mean + slope_x * (x - mean_x) + slope_y * (y - mean_y)
    return fitted, total
