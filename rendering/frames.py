"""Rendered frames: uv, opacity and colour of every pixel, one frame at a time."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from implicit_neural_networks import ALPHA_FLOOR, ALPHA_SCALE, Model, visibility
from media.clip import Clip
from parallel.side_by_side import stream_side_by_side

Floats = NDArray[np.floating]
Result = TypeVar("Result")

VISIBLE = 0.5  # A pixel shows a layer, and an atlas texel is visible, if the visibility is above this.
BACKGROUND_LIMIT = 0.75  # Opacity in [0, 1] that corresponds to a raw network output (tanh) of 0.5.
MOST_PIXELS_IN_WORK = 20_000_000  # Pixels of the frames that are rendered side by side; it bounds the memory.
EMPTY_IMAGE = np.empty((0, 0, 3), np.float32)


@dataclass
class Frame:
    """One rendered frame of H x W pixels and L layers, the background last."""

    t: int  # number of the frame, from 0
    uv: Floats  # (L, H, W, 2) position in each layer's own square; its atlas covers [-1, 1]^2
    alpha: Floats  # (L - 1, H, W) opacity of each foreground object
    rgb: Floats  # (H, W, 3) colours of the composited layers, with light; EMPTY_IMAGE if they were not rendered
    full_range: bool = True  # alpha reaches 0 and 1; False: it has the published range [0.001, 0.991]
    light: Floats | None = None  # (H, W, 3) factor of the colours; None for a model without light
    unlit: Floats | None = None  # (H, W, 3) colours of the composited layers, without light

    @property
    def visibility(self) -> Floats:
        """Visibility of each layer in each pixel, (L, H, W); it sums to 1 over the layers."""
        return visibility(torch.from_numpy(self.alpha)).numpy()

    @property
    def uses_background(self) -> NDArray[np.bool_]:
        """Pixels (H, W) that decide which part of the background's atlas is shown.

        As published, these are the pixels in which the raw opacity (tanh) of every object is below 0.5.
        """
        limit = BACKGROUND_LIMIT if self.full_range else ALPHA_SCALE * BACKGROUND_LIMIT + ALPHA_FLOOR
        return np.all(self.alpha < limit, axis=0)

    @property
    def coverage(self) -> Floats:
        """Opacity of all foreground objects together, (H, W)."""
        return 1 - self.visibility[-1]


def render_frames(
    model: Model, clip: Clip, full_range: bool, with_colors: bool = True, output_size: tuple[int, int] | None = None
) -> Generator[Frame, None, None]:
    """Yield all frames of the clip, in their order, rendered in advance; see `render_frame`."""
    return map_frames(lambda frame: frame, model, clip, full_range, with_colors, output_size)


def map_frames(
    function: Callable[[Frame], Result],
    model: Model,
    clip: Clip,
    full_range: bool,
    with_colors: bool = True,
    output_size: tuple[int, int] | None = None,
) -> Generator[Result, None, None]:
    """Yield the results of a function for all rendered frames of the clip, in their order; see `render_frame`.

    Each core renders a frame and computes the function for it. A model on another device renders one frame after the
    other; the function is computed on the CPU all the same, so it must not use the device.
    """

    def render(t: int) -> Frame:
        return render_frame(model, clip, t, full_range, with_colors, output_size)

    width, height = output_size or (clip.width, clip.height)
    times, most_workers = range(len(clip)), max(2, MOST_PIXELS_IN_WORK // (width * height))
    if next(model.parameters()).device.type == "cpu":
        return stream_side_by_side(lambda t: function(render(t)), times, most_workers)
    return stream_side_by_side(function, map(render, times), most_workers)


@torch.no_grad()
def render_frame(
    model: Model,
    clip: Clip,
    t: int,
    full_range: bool,
    with_colors: bool = True,
    output_size: tuple[int, int] | None = None,
) -> Frame:
    """Render frame t of the clip. Without with_colors, rgb stays empty.

    output_size: (width, height) of the result; None takes the working size of the clip.
    """
    width, height = output_size or (clip.width, clip.height)

    def to_image(values: Tensor) -> Floats:
        """Reshape the values of all pixels from (..., H * W, C) to (..., H, W, C)."""
        return values.unflatten(-2, (height, width)).cpu().numpy()

    sample = model.frame_sample(t, clip.size, full_range, with_colors, output_size)
    light = sample.light
    return Frame(
        t,
        to_image(sample.uv),
        to_image(sample.alpha)[..., 0],
        to_image(sample.rgb.clamp(0, 1)) if with_colors else EMPTY_IMAGE,
        full_range,
        None if light is None else to_image(light),
        to_image(sample.unlit) if with_colors and light is not None else None,
    )
