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

MARGIN = 1 / 40  # Width that the free part has beyond the outline, as a share of the long edge: outlines move a little.
SOFTNESS_PX = 1.0  # Standard deviation of the edge between the object and what is behind it.


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
    return None if edit is None else LayerEdit(layer, edit.rgba, edit.view, edit.sharp_texels, True, clears=True)


def clear_free_parts(
    model: Model, frame: Frame, attached_frame: Frame, edits: list[LayerEdit]
) -> tuple[Floats, Floats]:
    """Return the colours (H, W, 3) behind the free parts of all objects, premultiplied, and their opacity (H, W, 1).

    edits: those whose opacity is 1 in the free part of their object.
    """
    height, width = frame.alpha.shape[1:]
    color: Floats = np.zeros((height, width, 3), np.float32)
    shown: Floats = np.zeros((height, width, 1), np.float32)
    atlas_uv = compute_atlas_uv(model, attached_frame)
    for edit in sorted(edits, key=lambda edit: edit.layer, reverse=True):
        halo = in_halo(frame.alpha[edit.layer]).astype(np.float32)
        near = np.maximum(cv2.GaussianBlur(halo, (0, 0), SOFTNESS_PX), halo)
        weight = near * edit.sample(atlas_uv[edit.layer])[..., 3] * front_transmittance(frame, edit.layer)
        weight = weight[..., None]
        color = color * (1 - weight) + render_without(model, frame, edit.layer) * weight
        shown = shown * (1 - weight) + weight
    return color, shown


def render_without(model: Model, frame: Frame, layer: int) -> Floats:
    """Return the colours (H, W, 3) in [0, 1] of a frame without one of its objects, as its layers show it."""
    alpha = frame.alpha.copy()
    alpha[layer] = 0
    with torch.no_grad():
        uv = torch.from_numpy(frame.uv).flatten(1, 2).to(next(iter(model.parameters())).device)
        colors = model.colors(uv).cpu().numpy().reshape(*frame.uv.shape[:3], 3)
    picture = (replace(frame, alpha=alpha).visibility[..., None] * colors).sum(0)
    return np.asarray((picture if frame.light is None else picture * frame.light).clip(0, 1), np.float32)
