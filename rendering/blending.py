"""Blending of edits with a frame: premultiplied RGBA over RGB, in display space, as image editors do it.

A blend mode is a function of (frame, color, opacity): the frame (H, W, 3), the edit's colour premultiplied by its
opacity (H, W, 3), and the opacity (H, W, 1). It returns what is added to frame * (1 - opacity).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Weights of red, green and blue in the luminance (BT.601).


def normal(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Return the colour of the edit."""
    return color


def multiply(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Multiply the edit with the frame: the result is darker than both."""
    return frame * color


def screen(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Multiply the inverses of edit and frame: the result is brighter than both."""
    return opacity * frame + color - frame * color


def overlay(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Multiply where the frame is dark, and screen where it is bright."""
    return np.where(frame < 0.5, 2 * frame * color, opacity - 2 * (1 - frame) * (opacity - color))


def recolor(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Combine the hue and saturation of the edit with the luminance of the frame."""
    luminance = (frame @ LUMA)[..., None]
    return np.clip(color + opacity * luminance - (color @ LUMA)[..., None], 0, opacity)


BLEND_MODES: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "normal": normal,
    "multiply": multiply,
    "screen": screen,
    "overlay": overlay,
    "color": recolor,
}
LIT_BLEND_MODES = {"normal", "screen"}  # In the other modes the light of the scene comes from the frame itself.


def color_matrix(hue_degrees: float, saturation: float, brightness: float) -> NDArray[np.float32]:
    """Return the matrix (3, 3) that turns the hue of colours and multiplies their saturation and brightness.

    It is that of the filters hue-rotate, saturate and brightness of web pages (W3C Filter Effects).
    """
    luma = np.array([0.213, 0.715, 0.072])
    grey = np.tile(luma, (3, 1))
    turn = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    angle = np.deg2rad(hue_degrees)
    hue = grey + np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * turn
    saturate = grey + saturation * (np.eye(3) - grey)
    return np.asarray(brightness * saturate @ hue, np.float32)


def alpha_over(edits: Sequence[Floats]) -> Floats:
    """Composite premultiplied RGBA images (H, W, 4), each over the ones before it, into one image (H, W, 4)."""
    result = edits[0]
    for above in edits[1:]:
        result = above + result * (1 - above[..., 3:])
    return result


def composite_edits(
    source: Floats,
    layers: Sequence[tuple[Floats, Floats]],
    light: Floats | None = None,
    blend: str = "normal",
    attached: Sequence[tuple[Floats, Floats]] = (),
) -> tuple[Floats, Floats]:
    """Combine the edits of all layers to one colour (H, W, 3), premultiplied, and one opacity (H, W, 1).

    The edited frame is source * (1 - opacity) + colour. Since the visibilities of all layers sum to 1, this equals
    Eq. 15 and 16: the sum over the layers of visibility * (edit over source).

    source (H, W, 3): the frame. layers: for each edited layer the premultiplied edit (H, W, 4) and the visibility of
    the layer (H, W). light (H, W, 3): factor by which the scene's light changes the colours. blend: one of
    BLEND_MODES. attached: the same of paint that leaves its object's outline, back to front. It covers the edits of the
    layers, as far as the objects in front of it let it through, (H, W).
    """

    def blend_edit(edit_color: Floats, alpha: Floats) -> Floats:
        """Return what an edit adds to the frame, before visibility."""
        if light is not None and blend in LIT_BLEND_MODES:
            edit_color = np.minimum(edit_color * light, alpha) if blend == "screen" else edit_color * light
        return BLEND_MODES[blend](source, edit_color, alpha)

    color = np.zeros_like(source)
    opacity = np.zeros_like(source[..., :1])
    for rgba, visibility in layers:
        color += visibility[..., None] * blend_edit(rgba[..., :3], rgba[..., 3:])
        opacity += visibility[..., None] * rgba[..., 3:]
    for rgba, transmittance in attached:
        let_through = 1 - transmittance[..., None] * rgba[..., 3:]
        color = color * let_through + transmittance[..., None] * blend_edit(rgba[..., :3], rgba[..., 3:])
        opacity = opacity * let_through + transmittance[..., None] * rgba[..., 3:]
    return color, opacity


def apply_edits(
    source: Floats, layers: Sequence[tuple[Floats, Floats]], light: Floats | None = None, blend: str = "normal"
) -> Floats:
    """Composite the edits of all layers over a frame (H, W, 3) (Eq. 15 and 16); see `composite_edits`."""
    color, opacity = composite_edits(source, layers, light, blend)
    return source * (1 - opacity) + color
