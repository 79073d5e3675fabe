"""Soft opacity at the outline of objects, from the colours of the layers on both sides.

A pixel of the outline mixes two colours: I = alpha F + (1 - alpha) B (the matting equation). Other methods guess both.
Here other frames show the background B without the object, and the atlas of the object shows its colour F. So the
equation is solved for alpha in a band around the outline, which is as wide as the motion blur there."""

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from grids.fields import Lattice
from grids.frames import GridFrames
from grids.model import GridModel
from masks.quality import signed_distance
from media import blur, to_8_bit
from parallel.side_by_side import map_side_by_side
from unwrap_utils import Video

Floats = NDArray[np.floating]

BAND = 1 / 128  # Half width of the band around an outline without motion blur, as a share of the long edge.
EXPOSURE = 0.5  # Exposure time in frames that is assumed: the motion during it is the width of motion blur.
MAX_BAND = 1 / 40  # Largest half width of the band, as a share of the long edge.
# Weight of the learned opacity against the squared difference of the two colours: where they hardly differ, the
# equation says nothing.
PRIOR_WEIGHT = 0.03
SMOOTHING_PX = 0.7  # Standard deviation over which the solution is averaged, weighted by how much the equation says.
# The squared difference of a pixel from a layer is divided by this percentile of the differences of pixels that show
# the layer alone. Up to the first value of the range the pixel shows this layer alone, from the second one on it does
# not.
NOISE_PERCENTILE, NOISE_RANGE = 75, (1.0, 3.0)
LEAST_NOISE = 3 / 255**2  # Squared difference of one grey level in each channel: frames are rounded.
SOFT_RANGE = (16, 239)  # Values of a mask, 0 to 255, between which it is soft.
MATTE_WIDTH = 1.0  # Soft pixels per pixel of the outline, on both of its sides, from which on a mask is a matte.
SURE = 0.5  # Opacity on whose side a pixel outside the band stays.
FILL_SCALES = 5  # Number of windows, each twice as large as the one before, from which colours are continued.
SMALLEST_WEIGHT = 1e-3  # Weight of known pixels in a window below which the next larger window is used.


@torch.no_grad()
def solve_mattes(model: GridModel, video: Video, chosen_frames: Iterable[int] | None = None) -> torch.Tensor:
    """Return the opacity (F, T, H, W) uint8 of all objects, with the matting equation solved around their outlines.

    No pixel changes its side of one half. Mattes that somebody brought stay as they are. chosen_frames: others stay 0;
    None: all frames.
    """
    frames, height, width = model.shape.size
    mattes = torch.zeros(len(model.alphas), frames, height, width, dtype=torch.uint8)
    lattice = Lattice.of_raster((width, height), (height, width))

    def solve_frame(t: int) -> None:
        """Write the opacity of all objects in frame t into `mattes`."""
        grid_frames = model.at_frames(t)
        source = video.frames[t].cpu().numpy().astype(np.float32) / 255
        behind = render_layer(grid_frames, model.layers.background.index, lattice)
        opacity = [grid_frames.alpha(index, lattice)[0, 0].cpu().numpy() for index in range(len(model.alphas))]
        for index in reversed(range(len(opacity))):
            hidden = np.max(opacity[:index], axis=0) if index else np.zeros((height, width), np.float32)
            crop = grid_frames.box_slices(index, lattice)
            color = render_layer(grid_frames, index, lattice.crop(*crop))
            learned = opacity[index][crop]
            is_free = hidden[crop] < SURE
            blur_width_px = blur_px(model, index, t)
            matte = solve_matte(source[crop], color, behind[crop], learned, blur_width_px, max(height, width), is_free)
            is_given = bool(model.is_kept[index, t]) and has_soft_outline(video.masks[index, t].cpu().numpy())
            matte = np.where(is_free & (not is_given), matte, learned)
            mattes[index, t][crop] = torch.from_numpy(to_8_bit(matte))
            behind[crop] += matte[..., None] * (color - behind[crop])

    map_side_by_side(solve_frame, range(frames) if chosen_frames is None else chosen_frames, video.device)
    return mattes.to(video.device)


def has_soft_outline(mask: NDArray[np.uint8]) -> bool:
    """Return whether a mask (H, W), 0 to 255, is a matte: soft along its outline, not just where it was resized."""
    is_soft = (mask > SOFT_RANGE[0]) & (mask < SOFT_RANGE[1])
    outline = np.abs(signed_distance(mask > 127)) < 1 if (mask > 127).any() else np.zeros(mask.shape, bool)
    return bool(is_soft.sum() > MATTE_WIDTH * outline.sum())


@torch.no_grad()
def render_layer(grid_frames: GridFrames, layer: int, lattice: Lattice) -> Floats:
    """Return the colour of one layer in one frame with the frame's light, (h, w, 3) in [0, 1]."""
    color = grid_frames.color(layer, lattice)
    if len(grid_frames.model.light):
        color = color * grid_frames.light(lattice)
    return color[0].permute(1, 2, 0).clamp(0, 1).cpu().numpy().copy()


def blur_px(model: GridModel, index: int, t: int) -> float:
    """Return the width in pixels of an object's motion blur against the background in frame t.

    It is the motion of the middle of the object's box during the exposure.
    """
    top, bottom, left, right = model.boxes_on_cpu()[index, t].tolist()
    middle = np.array([(left + right) / 2, (top + bottom) / 2, 1.0])
    other = t + 1 if t + 1 < model.shape.size[0] else t - 1
    if other < 0:
        return 0.0
    moved = []
    for layer in (index, model.layers.background.index):
        matrices = model.transforms[layer].cpu().double().numpy()
        target = np.linalg.solve(matrices[other], matrices[t] @ middle)
        moved.append(target[:2] / target[2])
    return EXPOSURE * float(np.linalg.norm(moved[0] - moved[1]))


def solve_matte(
    source: Floats,
    color: Floats,
    behind: Floats,
    learned: Floats,
    blur_width_px: float,
    long_edge: int,
    is_free: NDArray[np.bool_] | None = None,
) -> Floats:
    """Solve the matting equation around the outline of an object; return the opacity (h, w), learned outside the band.

    source, color, behind (h, w, 3): a part of the frame, of the object's layer and of what is behind it. learned
    (h, w): the learned opacity. blur_width_px: width of the motion blur. long_edge: of the whole frame, in pixels.
    is_free (h, w): where no object in front hides this one; None: everywhere.
    """
    inside = learned > SURE
    if not inside.any() or inside.all():
        return learned
    half_width = min(BAND * long_edge + blur_width_px / 2, MAX_BAND * long_edge)
    difference = color - behind
    certainty = np.square(difference).sum(-1) + PRIOR_WEIGHT
    solved = (((source - behind) * difference).sum(-1) + PRIOR_WEIGHT * learned) / certainty
    averaged = smooth(solved.clip(0, 1) * certainty) / smooth(certainty)
    depth = np.abs(signed_distance(inside)) / half_width
    # A faint trace of the other layer that is no stronger than noise would be seen as a halo over a new background.
    beside = (depth > 1) & (depth < 2) & (True if is_free is None else is_free)
    averaged = np.where(
        inside,
        1 - (1 - averaged) * probability_of_mixture(source, color, beside & inside),
        averaged * probability_of_mixture(source, behind, beside & ~inside),
    )
    # A pixel stays on its side of one half, and the deeper it lies on that side, the less it may change: beside the
    # outline colours may agree by chance.
    limit = SURE * depth.clip(max=1)
    softened = np.where(inside, averaged.clip(min=SURE + limit + 1 / 255), averaged.clip(max=SURE - limit - 1 / 255))
    return np.where(depth < 1, softened.clip(0, 1), learned)


def probability_of_mixture(source: Floats, color: Floats, alone: NDArray[np.bool_]) -> Floats:
    """Return the probability, 0 to 1, that a pixel (h, w) does not show one layer alone.

    source, color (h, w, 3): of the frame and of the layer. alone (h, w): pixels nearby that show the layer alone; how
    much they differ from it is the noise. The probability is 1 everywhere if there are no such pixels.
    """
    if not alone.any():
        return np.ones(alone.shape, np.float32)
    error = smooth(np.square(source - color).sum(-1))
    noise = max(float(np.percentile(error[alone], NOISE_PERCENTILE)), LEAST_NOISE)
    lowest, highest = NOISE_RANGE
    return ((error / noise - lowest) / (highest - lowest)).clip(0, 1)


def smooth(values: Floats) -> Floats:
    """Average values (h, w) over the pixels around each one."""
    return np.asarray(cv2.GaussianBlur(values.astype(np.float32), (0, 0), SMOOTHING_PX))


def continue_colors(source: Floats, weight: Floats, scale_px: float) -> Floats:
    """Return the mean colour (H, W, 3) of the pixels with weight (H, W) around each pixel, in the smallest window.

    Pixels without any weight around them keep their colour. scale_px: radius of the smallest window.
    """
    result = source.astype(np.float32)
    is_known = np.zeros(weight.shape, bool)
    for scale in range(FILL_SCALES):
        sigma = max(1.0, scale_px / 2) * 2**scale
        total = blur(weight, sigma)
        mean = blur(source * weight[..., None], sigma)
        is_new = ~is_known & (total > SMALLEST_WEIGHT)
        result[is_new] = (mean / np.maximum(total, 1e-9)[..., None])[is_new]
        is_known |= is_new
    return result
