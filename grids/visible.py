"""Which pixels surely show a layer, by the probabilities of the objects."""

import numpy as np
from numpy.typing import NDArray

LIKELY = 0.5  # Probability above which a pixel counts as an object's, and for the extent of its atlas.
POSSIBLE = 0.05  # Probability above which a pixel counts for an object's box, and not for the background.


def visible_pixels(probabilities: NDArray[np.uint8]) -> list[NDArray[np.bool_]]:
    """Return for each layer the pixels (T, H, W) that surely show it; probabilities (F, T, H, W): 255 for certain."""
    is_hidden = np.zeros(probabilities.shape[1:], bool)
    visible = []
    for probability in probabilities:
        inside = probability > 255 * LIKELY
        visible.append(inside & ~is_hidden)
        is_hidden |= inside
    return [*visible, ~(probabilities > 255 * POSSIBLE).any(0)]
