"""The closed-form start of a grid model: alignment, opacity from the evidence, atlases by averaging."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from alignment.layers import align_layers, box_corners, object_boxes, refine_long_range
from grids.model import BOX_MARGIN, GridModel, Shape, Spacing, start_jacobians
from grids.unwrap import average_atlas
from masks.cues import shrink_video
from masks.quality import frames_to_refine
from masks.refinement import RefinedMasks, refine_masks
from media import to_8_bit
from media.clip import evenly_spaced
from unwrap_utils import Video

LARGEST_ATLAS = 4_000_000  # texels
CLEAREST = 0.998  # opacity that the start gives at most, so that training can still change its mind
ATLAS_MARGIN = 0.08  # of an object's extent, around it
COARSEST_SCALE = 0.1  # this share of the frames may be larger in pixels than in texels
SURE = 0.8  # the evidence's probability that counts as certain, its opposite as excluded: no haze where nothing is
FIRST_FRAMES = 24  # that make the atlases of the first picture
LIKELY, POSSIBLE = 0.5, 0.05  # probabilities that count for an object's atlas, and for its box


def start_model(
    video: Video, spacing: Spacing, mask_quality: str, stride: int, show: Callable[[GridModel], None]
) -> tuple[GridModel, Tensor]:
    """A model that already shows the clip, and the objects' probability (F, T, ny, nx) at the nodes of their opacity.

    mask_quality: the config's. stride: reduction of the atlases to begin with. show gets a first model, from the masks
    as they are, before the evidence is weighed.
    """
    host = video.to(torch.device("cpu"))
    transforms = align_layers(host)
    frames = reduce_frames(host, stride)
    masks = host.masks.numpy()
    show(build_model(host, transforms, masks, spacing, frames, stride, FIRST_FRAMES)[0])
    transforms = refine_long_range(host, transforms)
    clip, rgb = shrink_video(host), host.frames.numpy()
    likely = []
    objects = zip(masks, transforms[:-1], host.masks_found.tolist(), strict=True)
    for number, (mask, motion, is_found) in enumerate(objects, 1):
        wanted = frames_to_refine(clip, rgb, mask, mask_quality, is_found)
        exact = f"masks of {(~wanted).sum()} of {len(wanted)} frames are exact and kept"
        print(f"object {number}: {'masks are rough and are refined' if wanted.all() else exact} (mask_quality)")
        if wanted.any():
            found = upsample_probability(refine_masks(clip, mask, transforms[-1], motion), rgb)
            mask = np.where(wanted[:, None, None], found, mask)
        likely.append(mask)
    return build_model(host, transforms, np.stack(likely), spacing, frames, stride)


def build_model(
    video: Video,
    transforms: NDArray[np.float64],
    likely: NDArray[np.uint8],
    spacing: Spacing,
    frames: Tensor,
    stride: int,
    averaged: int | None = None,
) -> tuple[GridModel, Tensor]:
    """A model from transforms (L, T, 3, 3) and the objects' probability (F, T, H, W), 255 for certain,
    with averaged atlases.

    frames (T, 3, H / stride, W / stride): the video reduced, whose resolution the atlases get. averaged: at most so
    many of them, evenly spread, make the atlases.
    """
    _, height, width = video.size
    extents = [object_boxes(each > 255 * LIKELY, 0.0) for each in likely]
    extents.append(np.tile([0, height, 0, width], (len(frames), 1)))
    margins = [ATLAS_MARGIN] * len(likely) + [0.0]
    fitted = [
        fit_atlas(motion, extent, (height, width), margin)
        for motion, extent, margin in zip(transforms, extents, margins, strict=True)
    ]
    model = GridModel(Shape(video.size, tuple(size for _, size in fitted), spacing))
    model.transforms.copy_(torch.from_numpy(np.stack([matrix for matrix, _ in fitted])))
    model.boxes.copy_(torch.from_numpy(np.stack([object_boxes(each > 255 * POSSIBLE, BOX_MARGIN) for each in likely])))
    probability = torch.stack([sample_at_nodes(each, model.alphas[0][-1].values.shape[2:]) for each in likely])
    probability = (probability * 255).round() / 255  # as checkpoints keep it: resuming changes nothing
    for group, each in zip(model.alphas, probability, strict=True):
        group[-1].values.data.copy_(torch.logit(each.clamp(1 - CLEAREST, CLEAREST))[:, None])
    average_atlases(model, frames, probability, stride, averaged)
    return model, probability


def upsample_probability(evidence: RefinedMasks, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, H, W), 255 for certain: a quarter of the memory that floats take."""
    frames = (evidence.upsample(frame, t) for t, frame in enumerate(rgb))
    return np.stack([to_8_bit((frame - (1 - SURE)) / (2 * SURE - 1)) for frame in frames])


def fit_atlas(
    transforms: NDArray[np.float64], boxes: NDArray[np.int64], size: tuple[int, int], margin: float
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Transforms to texels of an atlas that just holds the boxes (T, 4) of the frames, and its (height, width).

    In most frames that show the layer a working pixel is a texel or more, unless the atlas would become too large.
    """
    corners = box_corners(transforms, boxes)
    low, high = corners.min(0), corners.max(0)
    spare = margin * (high - low) + 2
    low, extent = low - spare, high - low + 2 * spare
    jacobians = start_jacobians(torch.from_numpy(transforms).float(), (0, *size))
    shown = boxes[:, 1] > boxes[:, 0]
    scales = jacobians.det().abs().sqrt().numpy()[shown if shown.any() else slice(None)]
    finer = 1 / max(float(np.quantile(scales, COARSEST_SCALE)), 1e-3)
    finer = min(finer, float(np.sqrt(LARGEST_ATLAS / extent.prod())))
    onto = np.array([[finer, 0, -low[0] * finer], [0, finer, -low[1] * finer], [0, 0, 1]])
    width, height = (max(4, int(np.ceil(side * finer))) for side in extent)
    return onto @ transforms, (height, width)


def sample_at_nodes(values: NDArray[np.uint8], nodes: tuple[int, int]) -> Tensor:
    """(T, ny, nx) in [0, 1]: pictures (T, H, W) at the nodes of a grid, smoothed as far as these lie apart."""
    height, width = values.shape[1:]
    step = (width - 1) / (nodes[1] - 1), (height - 1) / (nodes[0] - 1)
    matrix = np.array([[step[0], 0, 0], [0, step[1], 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    smooth = (cv2.GaussianBlur(each / np.float32(255), (0, 0), max(step) / 3) for each in values)
    return torch.from_numpy(
        np.stack([cv2.warpAffine(s, matrix, nodes[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE) for s in smooth])
    )


def reduce_frames(video: Video, stride: int) -> Tensor:
    """(T, 3, H / stride, W / stride) uint8, averaged."""
    planes = video.frames.permute(0, 3, 1, 2)
    if stride == 1:
        return planes  # no second copy of a long clip
    return torch.stack([functional.avg_pool2d(plane.float(), stride).round().byte() for plane in planes])


def average_atlases(
    model: GridModel, frames: Tensor, opacity: Tensor, stride: int, averaged: int | None = None
) -> None:
    """Give the model atlases averaged from frames (T, 3, h, w) of a stride, at that reduction.

    opacity (F, T, ny, nx) of the objects at the nodes of its grid. averaged: at most so many frames; None: all.
    """
    chosen = evenly_spaced(len(frames), averaged or len(frames))
    behind = torch.ones_like(opacity[0])
    shares = []
    for each in opacity:
        shares.append(behind * each)
        behind = behind * (1 - each)
    for layer, share in enumerate([*shares, behind]):
        # Squared: pixels that mix two layers tell little about either.
        atlas = average_atlas(model, layer, frames, share.square(), stride, chosen)
        model.atlases[layer] = torch.nn.Parameter(atlas.contiguous())
