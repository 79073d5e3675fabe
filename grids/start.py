"""The closed-form start of a grid model: alignment, opacity from the evidence, atlases by averaging."""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from alignment.evidence import Evidence, mended
from alignment.tracks import layer_pairs
from alignment.transforms import aligned, transformed
from grids.model import BOX_MARGIN, GridModel, Shape, start_jacobians
from grids.unwrap import averaged_atlas
from unwrap_utils import Video

LARGEST_ATLAS = 4_000_000  # texels
CLEAREST = 0.98  # opacity that the start gives at most, so that training can still change its mind
ATLAS_MARGIN = 0.08  # of an object's extent, around it
COARSEST_SCALE = 0.1  # this share of the frames may be larger in pixels than in texels
LIKELY, POSSIBLE = 0.5, 0.2  # probabilities that count for an object's atlas, and for its box


def start_model(video: Video, has_light: bool, stride: int) -> tuple[GridModel, Tensor]:
    """A model that already shows the clip, and the objects' probability (F, T, ny, nx) at the nodes of their opacity.

    stride: reduction of the atlases to begin with.
    """
    host = Video(*(getattr(video, name).cpu() for name in Video.__dataclass_fields__))
    frames, height, width = host.size
    masks = host.masks.numpy()
    covered = (masks > 127).any(0)
    background = layer_transforms(host, ~covered, "homography")
    objects = [layer_transforms(host, mask > 127, "affine") for mask in masks]
    evidence = [mended(host, mask, background, motion) for mask, motion in zip(masks, objects, strict=True)]
    likely = np.stack([full_probability(each, host.frames.numpy()) for each in evidence])
    boxes = [object_boxes(each > POSSIBLE, BOX_MARGIN) for each in likely]
    extents = [object_boxes(each > LIKELY, 0.0) for each in likely]
    transforms, sizes = [], []
    for motion, extent in zip(objects, extents, strict=True):
        corners = box_corners(motion, extent)
        fitted = in_texels(motion, corners, (height, width), ATLAS_MARGIN)
        transforms.append(fitted[0])
        sizes.append(fitted[1])
    whole = np.tile([0, height, 0, width], (frames, 1))
    fitted = in_texels(background, box_corners(background, whole), (height, width), 0.0)
    transforms.append(fitted[0])
    sizes.append(fitted[1])

    model = GridModel(Shape(host.size, tuple(sizes), has_light))
    model.transforms.copy_(torch.from_numpy(np.stack(transforms)))
    model.boxes.copy_(torch.from_numpy(np.stack(boxes)))
    probability = torch.stack([node_values(each, model.alphas[0][-1].values.shape[2:]) for each in likely])
    for group, each in zip(model.alphas, probability, strict=True):
        group[-1].values.data.copy_(torch.logit(each.clamp(1 - CLEAREST, CLEAREST))[:, None])
    average_atlases(model, reduced_frames(host, stride), probability, stride)
    return model, (probability * 255).round() / 255  # as checkpoints keep it: resuming changes nothing


def layer_transforms(video: Video, member: NDArray[np.bool_], kind: str) -> NDArray[np.float64]:
    """(T, 3, 3) frame pixels -> pixels of the layer's reference frame, the middle one of those that show it."""
    frames, height, width = video.size
    shown = np.flatnonzero(member.any((1, 2)))
    reference = int(shown[len(shown) // 2]) if len(shown) else frames // 2
    return aligned(layer_pairs(video, member), frames, reference, kind, (height, width))


def full_probability(evidence: Evidence, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T, H, W)."""
    return np.stack([evidence.at_size(frame, t) for t, frame in enumerate(rgb)])


def object_boxes(inside: NDArray[np.bool_], margin: float) -> NDArray[np.int64]:
    """(T, 4) top, bottom, left, right around what is inside in a frame or its neighbours; empty where nothing is."""
    frames, height, width = inside.shape
    boxes = np.zeros((frames, 4), np.int64)
    for t in range(frames):
        near = inside[max(0, t - 1) : t + 2].any(0)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if len(rows) == 0:
            continue
        reach = int(margin * max(np.ptp(rows), np.ptp(columns))) + (2 if margin else 0)
        boxes[t] = (
            max(0, rows[0] - reach),
            min(height, rows[-1] + 1 + reach),
            max(0, columns[0] - reach),
            min(width, columns[-1] + 1 + reach),
        )
    return boxes


def box_corners(transforms: NDArray[np.float64], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 2): corners of the boxes that hold anything, as their transforms place them."""
    corners = [
        transformed(matrix, np.array([[x, y] for x in (left, right - 1) for y in (top, bottom - 1)], float))
        for matrix, (top, bottom, left, right) in zip(transforms, boxes, strict=True)
        if bottom > top
    ]
    return np.concatenate(corners) if corners else np.array([[0.0, 0.0], [1.0, 1.0]])


def in_texels(
    transforms: NDArray[np.float64], corners: NDArray[np.float64], size: tuple[int, int], margin: float
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Transforms to texels of an atlas that just holds the corners, and its (height, width).

    One working pixel is one texel or less in most frames, unless the atlas would become too large.
    """
    low, high = corners.min(0), corners.max(0)
    spare = margin * (high - low) + 2
    low, extent = low - spare, high - low + 2 * spare
    jacobians = start_jacobians(torch.from_numpy(transforms).float(), (0, *size))
    scales = jacobians.det().abs().sqrt().numpy()
    finer = 1 / max(float(np.quantile(scales, COARSEST_SCALE)), 1e-3)
    finer = min(finer, float(np.sqrt(LARGEST_ATLAS / extent.prod())))
    onto = np.array([[finer, 0, -low[0] * finer], [0, finer, -low[1] * finer], [0, 0, 1]])
    width, height = (max(4, int(np.ceil(side * finer))) for side in extent)
    return onto @ transforms, (height, width)


def node_values(values: NDArray[np.float32], nodes: tuple[int, int]) -> Tensor:
    """(T, ny, nx): pictures (T, H, W) at the nodes of a grid, smoothed as far as these lie apart."""
    height, width = values.shape[1:]
    step = (width - 1) / (nodes[1] - 1), (height - 1) / (nodes[0] - 1)
    matrix = np.array([[step[0], 0, 0], [0, step[1], 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    smooth = (cv2.GaussianBlur(each, (0, 0), max(step) / 3) for each in values)
    return torch.from_numpy(
        np.stack([cv2.warpAffine(s, matrix, nodes[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE) for s in smooth])
    )


def reduced_frames(video: Video, stride: int) -> Tensor:
    """(T, 3, H / stride, W / stride) uint8, averaged."""
    planes = []
    for frame in video.frames:
        plane = frame.permute(2, 0, 1)
        planes.append(functional.avg_pool2d(plane.float(), stride).round().byte() if stride > 1 else plane)
    return torch.stack(planes)


def average_atlases(model: GridModel, frames: Tensor, opacity: Tensor, stride: int) -> None:
    """Give the model atlases averaged from frames (T, 3, h, w) of a stride, at that reduction.

    opacity (F, T, h', w') of the objects, at any size.
    """
    behind = torch.ones_like(opacity[0])
    shares = []
    for each in opacity:
        shares.append(behind * each)
        behind = behind * (1 - each)
    for layer, share in enumerate([*shares, behind]):
        # Squared: pixels that mix two layers tell little about either.
        atlas = averaged_atlas(model, layer, frames, share.square(), stride)
        model.atlases[layer] = torch.nn.Parameter(atlas.contiguous())
