"""Likeness of two pictures (H, W, 3) in [0, 1]."""

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

SSIM_WINDOW = 7  # scikit-image's default side, pixels


def psnr(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB: -10 log10 of the mean squared difference. Infinite for equal pictures."""
    error = np.mean(np.square(image.astype(np.float64) - truth))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it, mean over the channels; 1 is equal."""
    window = min(SSIM_WINDOW, *(side - 1 + side % 2 for side in image.shape[:2]))
    return float(structural_similarity(image, truth, channel_axis=-1, data_range=1.0, win_size=window))
