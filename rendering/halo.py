"""The halo of an object: pixels around it that its colour may still tint."""

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

LEAST_COVERAGE = 0.02  # Coverage by objects above which a pixel's colour is not that of a layer behind them alone.
# Radius of the halo, as a share of the long edge: motion blur or defocus tint pixels whose learned opacity is 0.
HALO_SIZE = 1 / 250


def in_halo(coverage: Floats, long_edge: int) -> NDArray[np.bool_]:
    """Return which pixels (H, W) an object covers or may tint.

    coverage (H, W): its opacity in a frame or in a part of one. long_edge: of the whole frame, in pixels.
    """
    radius = round(HALO_SIZE * long_edge)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    return np.asarray(cv2.dilate((coverage > LEAST_COVERAGE).astype(np.uint8), kernel) > 0)


def coverage_in_front(alpha: Floats, layer: int) -> Floats:
    """Return the opacity (H, W) of all objects in front of a layer together. alpha (L - 1, H, W): of each object."""
    return np.asarray(1 - np.prod(1 - alpha[:layer], axis=0))
