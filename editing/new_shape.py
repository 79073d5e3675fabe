"""A new shape of an object, drawn on one frame: what it leaves free of the object shows what is behind it.

The free part is carried to the other frames by the object's motion, as attached paint is. Parts of the object that the
drawn frame does not show stay, because nothing was said about them."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from editing.layer_edit import LayerEdit, front_transmittance
from editing.splatting import splat_attached
from implicit_neural_networks import Model
from rendering.atlas_view import compute_atlas_uv
from rendering.frames import Floats, Frame
from rendering.halo import LEAST_COVERAGE, in_halo
from rendering.hidden_light import continue_light

MARGIN = 1 / 40  # Width that the free part has beyond the outline, as a share of the long edge: outlines move a little.
# Standard deviation of the edge of the cleared pixels, as a share of the long edge and at least in pixels.
SOFTNESS, LEAST_SOFTNESS_PX = 1 / 768, 0.5


def find_free_part(model: Model, attached_frame: Frame, shape: Floats, layer: int) -> LayerEdit | None:
    """Return the part of an object that its new shape leaves free, as an edit whose opacity is 1 there.

    attached_frame: the frame on which the shape was drawn, as `editing.attachment.attach_paint` returns it. shape
    (H, W): 1 inside the new shape. None if the shape covers the whole object.
    """
    radius = round(MARGIN * max(shape.shape))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    is_object = attached_frame.alpha[layer] > LEAST_COVERAGE
    if not (is_object & (shape < 1)).any():
        return None
    free = cv2.dilate(is_object.astype(np.float32), kernel) * (1 - shape)
    edit = splat_attached(model, attached_frame, np.repeat(free[..., None], 4, axis=2).astype(np.float32), layer)
    return None if edit is None else replace(edit, is_free_part=True)


def clear_free_part(
    model: Model, frame: Frame, attached_frame: Frame, part: LayerEdit, long_edge: int
) -> tuple[Frame, Floats, Floats]:
    """Take the free part of an object out of a frame, or of a part of one.

    Returns the frame with what remains of the object's opacity, the colours (H, W, 3) that show instead, premultiplied,
    and their opacity (H, W, 1).

    part: as `find_free_part` returns it. long_edge: of the whole frame, in pixels.
    """
    freed = find_freed_pixels(model, frame, attached_frame, part, long_edge)
    shown = (freed * front_transmittance(frame, part.layer))[..., None]
    alpha = frame.alpha.copy()
    alpha[part.layer] *= 1 - freed
    cleared = replace(frame, alpha=alpha, light=light_without(frame, part.layer, long_edge, freed))
    return cleared, render_without(model, frame, part.layer, long_edge) * shown, shown


def find_freed_pixels(model: Model, frame: Frame, attached_frame: Frame, part: LayerEdit, long_edge: int) -> Floats:
    """Return how much of an object's opacity gives way in each pixel, (H, W) in [0, 1]; see `clear_free_part`."""
    halo = in_halo(frame.alpha[part.layer], long_edge).astype(np.float32)
    near = np.maximum(cv2.GaussianBlur(halo, (0, 0), max(SOFTNESS * long_edge, LEAST_SOFTNESS_PX)), halo)
    return np.asarray(near * part.sample(compute_atlas_uv(model, attached_frame)[part.layer])[..., 3])


def light_without(frame: Frame, layer: int, long_edge: int, freed: Floats | float = 1.0) -> Floats | None:
    """Return the light (H, W, 3) of a frame without an object, as far as that gives way, freed (H, W) in [0, 1]."""
    if frame.light is None:
        return None
    continued = continue_light(frame.light, in_halo(frame.alpha[layer], long_edge), long_edge)
    return np.asarray(frame.light + (continued - frame.light) * np.atleast_3d(freed))


def render_without(model: Model, frame: Frame, layer: int, long_edge: int) -> Floats:
    """Return the colours (H, W, 3) in [0, 1] of a frame without one of its objects, as its layers show it.

    long_edge: of the whole frame, in pixels.
    """
    alpha = frame.alpha.copy()
    alpha[layer] = 0
    with torch.no_grad():
        uv = torch.from_numpy(frame.uv).flatten(1, 2).to(next(iter(model.parameters())).device)
        colors = model.colors(uv).cpu().numpy().reshape(*frame.uv.shape[:3], 3)
    picture = (replace(frame, alpha=alpha).visibility[..., None] * colors).sum(0)
    light = light_without(frame, layer, long_edge)
    return np.asarray((picture if light is None else picture * light).clip(0, 1), np.float32)
