"""Correct a model after its start: strokes change the opacity, and atlases grow where an object becomes larger."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.layers import object_boxes
from grids.atlas_size import enlarge_atlas, texel_extent
from grids.fields import Lattice
from grids.model import BOX_MARGIN, GridModel
from grids.start import LARGEST_START_ALPHA, keep_masks, sample_at_nodes
from grids.visible import LIKELY, POSSIBLE
from masks.cues import shrink_video
from masks.strokes import apply_strokes, select_strokes
from media import to_8_bit
from unwrap_utils import Video

CHANGED = 0.25  # Change of the opacity at a node from which on the learned one is replaced.


@torch.no_grad()
def correct_by_strokes(model: GridModel, probability: Tensor, video: Video) -> Tensor:
    """Correct the opacity of a trained model by the strokes of a video, and return the corrected probability.

    probability (F, T, ny, nx): the objects' probability at the nodes of their opacity. Where strokes change the learned
    opacity, it starts anew; everything else of the model stays. Atlases are enlarged where they have become too small.
    """
    cpu_video, device = video.to(torch.device("cpu")), model.transforms.device
    clip, rgb = shrink_video(cpu_video), cpu_video.frames.numpy()
    learned = evaluate_opacity(model)
    corrected = np.stack(
        [
            apply_strokes(clip, rgb, opacity, select_strokes(cpu_video.strokes, number))
            for number, opacity in enumerate(learned, 1)
        ]
    )
    probability = probability.clone()
    for index, (before, after) in enumerate(zip(learned, corrected, strict=True)):
        grid = model.last_alpha_grid(index).values
        nodes_before, nodes_after = (
            sample_at_nodes(opacity, (grid.shape[2], grid.shape[3])).to(device) for opacity in (before, after)
        )
        limits = 1 - LARGEST_START_ALPHA, LARGEST_START_ALPHA
        change = torch.logit(nodes_after.clamp(*limits)) - torch.logit(nodes_before.clamp(*limits))
        is_changed = (nodes_after - nodes_before).abs() > CHANGED
        grid[:, 0] += torch.where(is_changed, change, 0.0)
        probability[index] = torch.where(is_changed, nodes_after, probability[index])
    keep_corrected_masks(model, corrected, cpu_video.strokes)
    enlarge_boxes(model, corrected)
    return probability


def evaluate_opacity(model: GridModel) -> NDArray[np.uint8]:
    """Return the opacity of all objects at the working size, (F, T, H, W), 255 for opaque."""
    frames, height, width = model.shape.size
    lattice = Lattice.of_raster((width, height), (height, width))
    opacity = np.zeros((len(model.alphas), frames, height, width), np.uint8)
    for t in range(frames):
        grid_frames = model.at_frames(t)
        for index in range(len(model.alphas)):
            opacity[index, t] = to_8_bit(grid_frames.alpha(index, lattice)[0, 0].cpu().numpy())
    return opacity


def keep_corrected_masks(model: GridModel, corrected: NDArray[np.uint8], strokes: dict[int, NDArray[np.uint8]]) -> None:
    """Keep masks (F, T, H, W) where the model kept masks before, and strokes everywhere."""
    device, earlier, is_kept = model.transforms.device, model.mask_logits, model.is_kept.cpu().numpy()
    keep_masks(model, corrected, is_kept, strokes)
    if earlier.numel():  # Strokes of earlier corrections stay, where there are no new ones.
        model.mask_logits = torch.where(model.mask_logits == 0, earlier.cpu(), model.mask_logits)
    model.mask_logits, model.is_kept = model.mask_logits.to(device), model.is_kept.to(device)


def enlarge_boxes(model: GridModel, opacity: NDArray[np.uint8]) -> None:
    """Enlarge the boxes and the atlases of objects until they hold the opacity (F, T, H, W), 255 for opaque."""
    for index, object_opacity in enumerate(opacity):
        found = torch.from_numpy(object_boxes(object_opacity > 255 * POSSIBLE, BOX_MARGIN)).to(model.boxes)
        box = model.boxes[index]
        low, high = torch.minimum(box, found), torch.maximum(box, found)
        union = torch.stack((low[:, 0], high[:, 1], low[:, 2], high[:, 3]), dim=1)
        is_empty, is_found = box[:, 1:2] <= box[:, :1], found[:, 1:2] > found[:, :1]
        model.boxes[index] = torch.where(is_found, torch.where(is_empty, found, union), box)
        enlarge_atlas(model, index, texel_extent(model, index, object_opacity > 255 * LIKELY, speck_share=0))
    model.cpu_boxes = None
