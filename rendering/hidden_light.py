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
FILLED_PX = 192  # Long edge at which light is continued; it is smooth.


def continue_light(light: Floats, is_hidden: NDArray[np.bool_], long_edge: int) -> Floats:
    """Return the light (H, W, 3) with that on hidden pixels (H, W) replaced by what is around them.

    Without that a white shoe would make the pavement behind it brighter. Where nothing around is seen, the light stays.
    long_edge: of the whole frame, in pixels, if this is a part of one.
    """
    step = max(1, long_edge // FILLED_PX)
    height, width = is_hidden.shape
    small_size = max(1, width // step), max(1, height // step)
    radius = -(-round(MIXED * long_edge) // step)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    hidden = (cv2.resize(is_hidden.astype(np.float32), small_size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    known = torch.from_numpy(1 - cv2.dilate(hidden, kernel))[None, None].float()
    if not known.any():
        return light
    small = torch.from_numpy(cv2.resize(light, small_size, interpolation=cv2.INTER_AREA)).permute(2, 0, 1)[None]
    filled = fill_unknown(small, known)[0].permute(1, 2, 0).contiguous().numpy()
    smooth = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.where(is_hidden[..., None], smooth, light))
