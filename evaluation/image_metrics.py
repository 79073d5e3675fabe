"""Metrics that compare two images (H, W, 3) in [0, 1]."""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from evaluation.mask_metrics import check_sizes

Floats = NDArray[np.floating]

SSIM_WINDOW_PX = 7  # Side of the window of SSIM; the default of scikit-image.


def psnr(image: Floats, truth: Floats) -> float:
    """Return the peak signal-to-noise ratio in dB, -10 log10 of the mean squared error. Equal images give infinity.

    Raises ValueError if the images differ in size.
    """
    check_sizes(image, truth)
    error = np.mean(np.square(image.astype(np.float64) - truth))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(image: Floats, truth: Floats) -> float:
    """Return the structural similarity (Wang et al. 2004) of scikit-image, the mean over the channels.

    Equal images give 1. Raises ValueError if the images differ in size or are smaller than 7 x 7 pixels.
    """
    check_sizes(image, truth)
    return float(structural_similarity(image, truth, channel_axis=-1, data_range=1.0, win_size=SSIM_WINDOW_PX))


@cache
def load_lpips() -> Callable[[Floats, Floats], float] | None:
    """Return a function that computes LPIPS (Zhang et al. 2018, AlexNet) of two images; lower is better.

    Return None if the package `lpips` or the weights of AlexNet are not installed. The metric is then left out.
    """
    try:
        import lpips
        import torch

        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except (ImportError, OSError):
        return None

    @torch.inference_mode()
    def distance(image: Floats, truth: Floats) -> float:
        check_sizes(image, truth)
        inputs = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() * 2 - 1 for pixels in (image, truth))
        return float(network(*inputs))

    return distance
