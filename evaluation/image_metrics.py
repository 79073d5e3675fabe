"""Likeness of two pictures (H, W, 3) in [0, 1]."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from evaluation.mask_metrics import check_sizes

SSIM_WINDOW = 7  # scikit-image's default side, pixels


def psnr(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio in dB: -10 log10 of the mean squared difference. Infinite for equal pictures."""
    check_sizes(image, truth)
    error = np.mean(np.square(image.astype(np.float64) - truth))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it, mean over the channels; 1 is equal.

    Pictures must be at least 7 pixels each way.
    """
    check_sizes(image, truth)
    return float(structural_similarity(image, truth, channel_axis=-1, data_range=1.0, win_size=SSIM_WINDOW))


@cache
def load_lpips() -> Callable[[NDArray[np.floating], NDArray[np.floating]], float] | None:
    """The learned distance LPIPS (Zhang et al. 2018, AlexNet) of two pictures, lower is better.

    None where the package `lpips` or the AlexNet weights are not at hand: then the figure is left out, not guessed.
    """
    try:
        import lpips
        import torch

        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError):
        return None

    @torch.inference_mode()
    def distance(image: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
        check_sizes(image, truth)
        pair = (torch.from_numpy(each).permute(2, 0, 1)[None].float() * 2 - 1 for each in (image, truth))
        return float(network(*pair))

    return distance
