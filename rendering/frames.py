"""Rendered frames: what a model says of every pixel of a frame, one frame at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicit_neural_networks import ALPHA_FLOOR, ALPHA_SCALE, Model, visibility
from media.clip import Clip

VISIBLE = 0.5  # a pixel counts as seen in a layer above this share
BACKGROUND_LIMIT = 0.75  # opacity where the raw output, a tanh, is 0.5
Floats = NDArray[np.float32]
NO_PICTURE = np.empty((0, 0, 3), np.float32)


@dataclass
class Frame:
    """One rendered frame; L layers, the background last."""

    t: int
    uv: Floats  # (L, H, W, 2), in [-1, 1] where the layer's atlas is
    alpha: Floats  # (L - 1, H, W)
    rgb: Floats  # (H, W, 3), the layers composed, as they are lit
    full_range: bool = True  # of alpha; else it is squeezed into the published range
    light: Floats | None = None  # (H, W, 3) factor of the colours; None: a model without light
    unlit: Floats | None = None  # (H, W, 3), the layers composed without it

    @property
    def visibility(self) -> Floats:
        """(L, H, W): share of each layer in each pixel."""
        return visibility(torch.from_numpy(self.alpha)).numpy()

    @property
    def uses_background(self) -> NDArray[np.bool_]:
        """(H, W): pixels that count for the background's crop, those of raw (tanh) opacity below 0.5, as published."""
        limit = BACKGROUND_LIMIT if self.full_range else ALPHA_SCALE * BACKGROUND_LIMIT + ALPHA_FLOOR
        return (self.alpha < limit).all(0)

    @property
    def coverage(self) -> Floats:
        """(H, W): opacity of all foreground objects together."""
        return 1 - self.visibility[-1]


def render_frames(
    model: Model, clip: Clip, full_range: bool, with_colors: bool = True, output_size: tuple[int, int] | None = None
) -> Iterator[Frame]:
    """Yield every frame of the clip as `render_frame` gives it, one at a time."""
    return (render_frame(model, clip, t, full_range, with_colors, output_size) for t in range(len(clip)))


@torch.no_grad()
def render_frame(
    model: Model,
    clip: Clip,
    t: int,
    full_range: bool,
    with_colors: bool = True,
    output_size: tuple[int, int] | None = None,
) -> Frame:
    """Render frame t of the clip. Without with_colors rgb stays empty.

    output_size: (width, height) of the result; None: the clip's working size.
    """
    width, height = output_size or (clip.width, clip.height)

    def picture(values: Tensor) -> Floats:
        """Values of all pixels (..., H * W, C) as (..., H, W, C)."""
        return values.unflatten(-2, (height, width)).cpu().numpy()

    sample = model.frame_sample(t, clip.size, full_range, with_colors, output_size)
    has_light = sample.light is not None
    return Frame(
        t,
        picture(sample.uv),
        picture(sample.alpha)[..., 0],
        picture(sample.rgb.clamp(0, 1)) if with_colors else NO_PICTURE,
        full_range,
        picture(sample.light) if has_light else None,
        picture(sample.unlit) if with_colors and has_light else None,
    )
