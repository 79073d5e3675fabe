"""Errors of an opacity (H, W) in [0, 1] as matting benchmarks define them (Rhemann et al. 2009, alphamatting.com)."""

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

GRADIENT_SIGMA_PX = 1.4  # Standard deviation of the Gaussian whose derivative measures the gradient of an opacity.
CONNECTIVITY_STEP = 0.1  # Distance of the thresholds at which connectivity is measured.
LEAST_DISCONNECTION = 0.15  # Difference between an opacity and its connected level that counts.


def matting_errors(alpha: Floats, truth: Floats, region: Flags) -> dict[str, float]:
    """Return the four errors inside a region (H, W), such as the unknown part of a trimap; all 0 are the best.

    sad: sum of absolute differences, in thousands. mse: mean squared difference. gradient: sum of squared differences
    of the gradients' lengths, in thousands. connectivity: see `connectivity`, in thousands.
    """
    if not region.any():
        return dict.fromkeys(("sad", "mse", "gradient", "connectivity"), 0.0)
    difference = (alpha - truth)[region]
    steepness = gradient_length(alpha) - gradient_length(truth)
    disconnection = np.abs(connectivity(alpha, truth) - connectivity(truth, alpha))
    return {
        "sad": float(np.abs(difference).sum() / 1000),
        "mse": float(np.square(difference).mean()),
        "gradient": float(np.square(steepness[region]).sum() / 1000),
        "connectivity": float(disconnection[region].sum() / 1000),
    }


def gradient_length(alpha: Floats) -> Floats:
    """Return the length of the gradient of an opacity (H, W), by derivatives of a Gaussian."""
    radius = int(np.ceil(3 * GRADIENT_SIGMA_PX))
    x = np.arange(-radius, radius + 1)
    gauss = np.exp(-np.square(x) / (2 * GRADIENT_SIGMA_PX**2))
    gauss /= gauss.sum()
    slope = -x * gauss / GRADIENT_SIGMA_PX**2
    image = alpha.astype(np.float64)
    across = cv2.sepFilter2D(image, -1, slope, gauss, borderType=cv2.BORDER_REPLICATE)
    down = cv2.sepFilter2D(image, -1, gauss, slope, borderType=cv2.BORDER_REPLICATE)
    return np.hypot(across, down)


def connectivity(alpha: Floats, other: Floats) -> Floats:
    """Return how well each pixel (H, W) is connected to the part that is opaque in both opacities, 0 to 1.

    The level of a pixel is the highest threshold at which it belongs to the largest part that is above the threshold in
    both. What exceeds the level by LEAST_DISCONNECTION or more lowers the result.
    """
    level = np.zeros(alpha.shape)
    is_open = np.ones(alpha.shape, bool)
    for threshold in np.arange(CONNECTIVITY_STEP, 1 + CONNECTIVITY_STEP / 2, CONNECTIVITY_STEP):
        both = ((alpha >= threshold) & (other >= threshold)).astype(np.uint8)
        count, labels, statistics, _ = cv2.connectedComponentsWithStats(both, connectivity=4)
        if count < 2:
            break
        is_open &= labels == 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax())
        level[is_open] = threshold
    excess = alpha - level
    return 1 - np.where(excess >= LEAST_DISCONNECTION, excess, 0)
