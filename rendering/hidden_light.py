"""The light on what objects hide, which no frame shows: it goes on from the light around them."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from grids.unwrap import fill_unknown

Floats = NDArray[np.floating]

# All layers share one field of light, which is learned where they are seen. Up to this distance from an object's
# outline, as a share of the long edge, its nodes mix the light of both sides.
MIXED = 1 / 48


def continue_light(light: Floats, is_hidden: NDArray[np.bool_], long_edge: int) -> Floats:
    """Return the light (H, W, 3) with that on hidden pixels (H, W) replaced by what is around them.

    Without that a white shoe would make the pavement behind it brighter. Where nothing around is seen, the light stays.
    long_edge: of the whole frame, in pixels, if this is a part of one.
    """
    radius = round(MIXED * long_edge)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    is_known = cv2.dilate(is_hidden.astype(np.uint8), kernel) == 0
    if not is_known.any():
        return light
    known = torch.from_numpy(is_known)[None, None].float()
    filled = fill_unknown(torch.from_numpy(light).permute(2, 0, 1)[None], known)[0].permute(1, 2, 0).numpy()
    return np.asarray(np.where(is_hidden[..., None], filled, light))
