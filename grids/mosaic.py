"""The atlases of a long clip, put together from those of its windows.

Nothing in a window says where exactly its atlas lies: if atlas and mapping move together, its frames look the same. So
every window is registered on those before it. Its correction is smooth, and fits two kinds of evidence: in the frames
that it has in common with the window before, each pixel must have one place; and where both show the same, their
pictures must lie on each other, which works over any time, so errors do not add up.
"""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.dis_flow import DisFlow
from alignment.long_range import find_textured_pixels
from grids.atlases import Size
from grids.fields import Lattice
from grids.model import GridModel
from grids.unwrap import fill_unknown
from grids.windows import LayerAtlas, Placement, Span, WindowLayer
from implicit_neural_networks import visibility
from media import to_8_bit
from unwrap_utils import consistent_pixels

Floats = NDArray[np.floating]
Box = tuple[int, int, int, int]  # left, top, right and bottom in texels; right and bottom are exclusive

LARGEST_TEXELS = 8_000_000  # Most texels of an atlas of a long clip.
UNSEEN = 1e-3  # Weight of texels that no frame of a window shows; they count where no other window shows them.
ENOUGH_FRAMES = 3.0  # Frames that show a texel, from which on later windows hardly change its colour.
MOST_COVERAGE = 1e4  # Largest weight that is stored.
SEEN = 0.5  # Weight of a texel that counts as seen: about half a frame in which it is visible.
LEAST_COMMON_TEXELS = 400  # Fewest texels that two atlases must both show for their pictures to be compared.
NODE_TEXELS = 8  # Texels of the clip's atlas between the nodes of a correction.
COMMON_SPACING_PX = 8  # Pixels between the points that are compared in common frames.
SHOWN = 0.5  # Visibility above which a point is one of a layer.
SMOOTHING_NODES = (16.0, 8.0, 4.0, 2.0, 1.0)  # Widths of the Gaussian windows of `smooth_samples`.
ENOUGH = 0.2  # Weight in a window, relative to the mean weight of a node, that outweighs the wider windows.


def fit_mosaic(corners: Floats, scale: float) -> tuple[Placement, Size]:
    """Fit an atlas around positions (n, 2) on a layer's plane; returns its placement and its (height, width).

    scale: texels per unit of the plane; fewer if the atlas would become too large.
    """
    low, extent = corners.min(0), np.ptp(corners, axis=0)
    scale = min(scale, float(np.sqrt(LARGEST_TEXELS / extent.prod())))
    width, height = (max(4, round(side * scale) + 1) for side in extent)
    return Placement(scale, *(-low * scale).tolist()), (height, width)


def atlas_corners(layer: WindowLayer, placement: Placement) -> Floats:
    """Return the first and the last texel (x, y) of a window's atlas, (2, 2), in texels of another placement."""
    corners = np.array([[0, 0], [layer.size[1] - 1, layer.size[0] - 1]], float)
    return layer.placement.inverse().then(placement).apply(corners)


class Mosaic:
    """The atlases of one layer in several windows, one laid onto the other."""

    def __init__(self, placement: Placement, size: Size):
        self.placement, self.size = placement, size
        self.color_sum, self.weight_sum = np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)

    @classmethod
    def around(cls, base: LayerAtlas | None, layers: Sequence[WindowLayer], coverages: Sequence[Floats]) -> "Mosaic":
        """Return a mosaic that has room for what windows show of a layer, and for an atlas `base` if there is one.

        layers, coverages: of the windows, see `add`. A base keeps its texels unless the mosaic would become too large,
        and its colours. Without one, the mosaic has the texels of the sharpest window.
        """
        is_seen = [bool((coverage > SEEN).any()) for coverage in coverages]
        chosen = [layer for layer, seen in zip(layers, is_seen, strict=True) if seen] or list(layers)
        if base is None:
            corners = np.concatenate([atlas_corners(layer, Placement()) for layer in chosen])
            return cls(*fit_mosaic(corners, max(layer.placement.scale for layer in chosen)))
        whole = WindowLayer(base.size, base.placement)
        first, end = np.zeros(2), np.array([base.size[1], base.size[0]], float)
        for layer, coverage in zip(layers, coverages, strict=True):
            rows, columns = np.nonzero(coverage > SEEN)
            if len(rows):
                steps = np.array([layer.size[1] / coverage.shape[1], layer.size[0] / coverage.shape[0]])
                seen = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) * steps
                to_base = layer.placement.inverse().then(base.placement)
                first, end = np.minimum(first, to_base.apply(seen[0])), np.maximum(end, to_base.apply(seen[1]))
        # Whole texels, so that those of the base stay as they are.
        corners = np.stack((np.floor(first), np.ceil(end) - 1))
        mosaic = cls(*fit_mosaic(base.placement.inverse().apply(corners), base.placement.scale))
        mosaic.add(base.image[0].permute(1, 2, 0).numpy(), base.coverage.numpy(), whole)
        return mosaic

    def box(self, layer: WindowLayer) -> Box:
        """Return the part of the mosaic that the atlas of a window covers."""
        first, last = atlas_corners(layer, self.placement)
        left, top = np.clip(np.floor(first).astype(int), 0, None)
        right, bottom = np.minimum(np.ceil(last).astype(int) + 1, [self.size[1], self.size[0]])
        return int(left), int(top), int(max(right, left + 1)), int(max(bottom, top + 1))

    def warp(self, values: Floats, layer: WindowLayer) -> Floats:
        """Return what the atlas of a window, (h, w[, C]) at any resolution, shows in its box of the mosaic."""
        left, top, right, bottom = self.box(layer)
        columns, rows = np.meshgrid(np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32))
        places = self.placement.inverse().apply(np.stack((columns, rows), axis=-1))
        texels = layer.placement.apply(places)
        texels = layer.placement.apply(places - layer.correction_at(torch.from_numpy(texels)).numpy())
        steps = np.array([values.shape[1] / layer.size[1], values.shape[0] / layer.size[0]])
        x, y = np.moveaxis(((texels + 0.5) * steps - 0.5).astype(np.float32), -1, 0)
        return np.asarray(cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)

    def add(self, color: Floats, coverage: Floats, layer: WindowLayer) -> None:
        """Add the atlas of a window where those before show little. A mean of many windows would be blurred.

        color (h, w, 3), coverage (h', w'): see `unwrap.measure_coverage`.
        """
        left, top, right, bottom = self.box(layer)
        is_needed = np.exp(-self.weights((left, top, right, bottom)) / ENOUGH_FRAMES)
        weight = (self.warp(coverage, layer) + UNSEEN) * is_needed
        self.color_sum[top:bottom, left:right] += self.warp(color, layer) * weight[..., None]
        self.weight_sum[top:bottom, left:right] += weight

    def colors(self, box: Box) -> Floats:
        """Return the mean colours in a box, (h, w, 3)."""
        left, top, right, bottom = box
        return self.color_sum[top:bottom, left:right] / self.weights(box)[..., None].clip(UNSEEN / 2)

    def weights(self, box: Box) -> Floats:
        """Return the summed weights in a box, (h, w)."""
        left, top, right, bottom = box
        return self.weight_sum[top:bottom, left:right]

    def finish(self) -> LayerAtlas:
        """Return the atlas; what no window holds is filled from around it."""
        values = torch.from_numpy(self.colors((0, 0, self.size[1], self.size[0]))).permute(2, 0, 1)[None]
        known = torch.from_numpy(self.weight_sum > 0)[None, None].float()
        coverage = torch.from_numpy((self.weight_sum - UNSEEN).clip(0, MOST_COVERAGE))
        return LayerAtlas(fill_unknown(values, known), self.placement, coverage)


Samples = tuple[Floats, Floats]
"""Texels (n, 2) of a window's atlas, and by how much their places on the plane have to move, (n, 2)."""


def register_window(
    mosaic: Mosaic, color: Floats, coverage: Floats, layer: WindowLayer, common: Samples
) -> WindowLayer:
    """Return a window's layer with the correction that lays its atlas onto a mosaic of earlier windows.

    color, coverage: see `Mosaic.add`. common: of the frames that the window shares with the one before. If the
    correction does not bring these nearer, there is none.
    """
    texels, moves = common
    by_frames = layer
    if len(texels):
        by_frames = replace(layer, correction=smooth_samples(layer, mosaic.placement, [common]))
    pictures = match_pictures(mosaic, color, coverage, by_frames)
    sources = [source for source in (common, pictures) if len(source[0])]
    if not sources:
        return layer
    corrected = replace(layer, correction=smooth_samples(layer, mosaic.placement, sources))
    if not len(texels):
        return corrected
    left_over = moves - corrected.correction_at(torch.from_numpy(texels)).numpy()
    if np.linalg.norm(left_over, axis=1).mean() > np.linalg.norm(moves, axis=1).mean():
        return layer
    return corrected


@torch.no_grad()
def compare_common_frames(
    earlier: GridModel,
    earlier_layer: WindowLayer,
    later: GridModel,
    later_layer: WindowLayer,
    spans: tuple[Span, Span],
    layer: int,
) -> Samples:
    """Return the places of points of a layer in the frames that two windows share.

    spans: the frames of both windows.
    """
    height, width = later.shape.size[1:]
    half = COMMON_SPACING_PX // 2
    rows_px, columns_px = (torch.arange(half, side, COMMON_SPACING_PX).float() for side in (height, width))
    lattice = Lattice(rows_px, columns_px, (height, width))
    texels, moves = [np.zeros((0, 2))], [np.zeros((0, 2))]
    for t in range(spans[1].first, min(spans[0].end, spans[1].end)):
        places, is_shown = [], np.ones(lattice.shape, bool).ravel()
        for model, span in ((earlier, spans[0]), (later, spans[1])):
            frames = model.at_frames(t - span.first)
            alpha = torch.stack([frames.alpha(index, lattice)[0, 0] for index in range(len(model.alphas))])
            is_shown &= (visibility(alpha)[layer] > SHOWN).flatten().cpu().numpy()
            places.append(frames.texels(layer, lattice)[0].flatten(1).T.cpu())
        targets, now = (
            window_layer.to_plane(Placement.of_texels(window_layer.size).inverse().apply_to_tensor(place)).numpy()
            for window_layer, place in zip((earlier_layer, later_layer), places, strict=True)
        )
        texels.append(places[1].numpy()[is_shown])
        moves.append((targets - now)[is_shown])
    return np.concatenate(texels), np.concatenate(moves)


def match_pictures(mosaic: Mosaic, color: Floats, coverage: Floats, layer: WindowLayer) -> Samples:
    """Return by how much the atlas of a window has to move to lie on a mosaic, where both are seen."""
    box = mosaic.box(layer)
    shown, weight = mosaic.warp(color, layer), mosaic.warp(coverage, layer)
    is_seen = (weight > SEEN) & (mosaic.weights(box) > SEEN)
    if is_seen.sum() < LEAST_COMMON_TEXELS:
        return np.zeros((0, 2)), np.zeros((0, 2))
    first, second = (to_8_bit(np.where(is_seen[..., None], each, 0.5)) for each in (shown, mosaic.colors(box)))
    # Once: the unseen parts of these pictures have edges that only look like motion.
    flow, back_flow = DisFlow(searches_twice=False)(first, second)
    y, x = np.nonzero(is_seen & consistent_pixels(flow, back_flow) & find_textured_pixels(first))
    places = mosaic.placement.inverse().apply(np.stack((x + box[0], y + box[1]), axis=-1).astype(float))
    texels = layer.placement.apply(places)
    own = layer.correction_at(torch.from_numpy(texels)).numpy()
    texels = layer.placement.apply(places - own)
    return texels, own + flow[y, x] / mosaic.placement.scale


def smooth_samples(layer: WindowLayer, placement: Placement, sources: Sequence[Samples]) -> Tensor:
    """Return a smooth correction, (1, 2, ny, nx), of a window's atlas from samples of one or more sources.

    Every source has the same weight. Where samples are dense the correction follows them, elsewhere the mean of a
    wider area. placement: of the mosaic.
    """
    extent = np.ptp(atlas_corners(layer, placement), axis=0)
    columns, rows = (max(2, round(float(side) / NODE_TEXELS) + 1) for side in extent)
    total, weights = np.zeros((rows, columns, 2), np.float32), np.zeros((rows, columns), np.float32)
    last = np.array([max(layer.size[1] - 1, 1), max(layer.size[0] - 1, 1)])
    for texels, moves in sources:
        x, y = np.rint(texels / last * [columns - 1, rows - 1]).astype(int).T
        x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
        np.add.at(total, (y, x), moves / len(moves))
        np.add.at(weights, (y, x), 1 / len(moves))
    nodes = np.broadcast_to(total.sum((0, 1)) / weights.sum(), total.shape)
    enough = ENOUGH * float(weights[weights > 0].mean())
    for width in SMOOTHING_NODES:
        near, near_total = (
            cv2.GaussianBlur(each, (0, 0), width, borderType=cv2.BORDER_CONSTANT) for each in (weights, total)
        )
        share = (near / (near + enough))[..., None]
        nodes = (1 - share) * nodes + share * near_total / np.maximum(near, 1e-12)[..., None]
    return torch.from_numpy(np.ascontiguousarray(nodes)).float().permute(2, 0, 1)[None]
