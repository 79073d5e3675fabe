"""How an edit is laid over a frame: premultiplied RGBA over RGB, in display space, as editors do it."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LUMA = np.float32([0.299, 0.587, 0.114])  # weights of the luminance that "color" keeps

# Each: (frame (H, W, 3), premultiplied colour (H, W, 3), opacity (H, W, 1)) -> what is added to frame * (1 - opacity).


def normal(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    return color


def multiply(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    return frame * color


def screen(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    return opacity * frame + color - frame * color


def overlay(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """Multiply where the frame is dark, screen where it is bright."""
    return np.where(frame < 0.5, 2 * frame * color, opacity - 2 * (1 - frame) * (opacity - color))


def recolor(frame: Floats, color: Floats, opacity: Floats) -> Floats:
    """The edit's hue and saturation at the frame's luminance."""
    luminance = (frame @ LUMA)[..., None]
    return np.clip(color + opacity * luminance - (color @ LUMA)[..., None], 0, opacity)


BLENDS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "normal": normal,
    "multiply": multiply,
    "screen": screen,
    "overlay": overlay,
    "color": recolor,
}
BLENDS_LIT_BY_SCENE = {"normal", "screen"}  # the others take the scene's light from the frame itself


def alpha_over(edits: Sequence[Floats]) -> Floats:
    """Premultiplied RGBA pictures (H, W, 4), each over the ones before it, as one."""
    result = edits[0]
    for above in edits[1:]:
        result = above + result * (1 - above[..., 3:])
    return result


def composite_edits(
    source: Floats, layers: Sequence[tuple[Floats, Floats]], light: Floats | None = None, blend: str = "normal"
) -> tuple[Floats, Floats]:
    """What edits put over a frame (H, W, 3): colour premultiplied by opacity (H, W, 3), and opacity (H, W, 1).

    layers: for each edited layer its edit (H, W, 4), premultiplied, and the layer's share (H, W). The shares of all
    layers sum to 1, so Eq. 15 and 16 (the sum over layers of share * (edit over frame)) are frame * (1 - opacity) +
    colour. light (H, W, 3): what the scene's colours are multiplied by there.
    """
    color = np.zeros_like(source)
    opacity = np.zeros_like(source[..., :1])
    for rgba, share in layers:
        paint, alpha = rgba[..., :3], rgba[..., 3:]
        if light is not None and blend in BLENDS_LIT_BY_SCENE:
            paint = np.minimum(paint * light, alpha) if blend == "screen" else paint * light
        color += share[..., None] * BLENDS[blend](source, paint, alpha)
        opacity += share[..., None] * alpha
    return color, opacity


def apply_edits(
    source: Floats, edits: list[tuple[Floats, Floats]], light: Floats | None = None, blend: str = "normal"
) -> Floats:
    """Eq. 15 and 16: edits of all layers over a frame (H, W, 3); what they are is in `laid_over`."""
    color, opacity = composite_edits(source, edits, light, blend)
    return source * (1 - opacity) + color
