"""The look of a clip over time: differences of the colours of its atlases around some frames.

One picture per layer cannot show legs that cross, an animal that turns or water that glitters. So a model has looks, a
fixed number of frames apart. Each holds differences from all atlases, at the same places: uv means the same in all
looks, so paint needs no look. In a frame between two looks the differences of both are blended."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CHANGE_STEP = 1 / 254  # Unit in which differences of colours are stored as 8-bit integers; they reach one half.

TexelBox = tuple[int, int, int, int]  # top, bottom, left, right in texels; bottom and right are exclusive


class Look(nn.Module):
    """Differences of all atlases around one frame, each in a box of its atlas."""

    def __init__(self, center: float, boxes: Sequence[TexelBox]):
        """Create a look without differences. center: number of the frame. boxes: of each layer."""
        super().__init__()
        self.center, self.boxes = center, [*boxes]
        for layer, (top, bottom, left, right) in enumerate(boxes):
            self.register_buffer(f"layer_{layer}", torch.zeros(3, bottom - top, right - left, dtype=torch.int8))

    def change(self, layer: int) -> Tensor:
        """Return the differences of a layer's atlas in its box, (3, h, w) int8, in units of CHANGE_STEP."""
        return self.get_buffer(f"layer_{layer}")

    def add_change(self, layer: int, change: Tensor) -> None:
        """Add differences (3, h, w) of colours in [0, 1] to those of a layer."""
        total = self.change(layer) + change / CHANGE_STEP
        self.change(layer).copy_(total.round().clamp(-127, 127))

    def values(self) -> dict[str, Any]:
        """Return what describes the look in a checkpoint, beside its buffers."""
        return {"center": self.center, "boxes": [list(box) for box in self.boxes]}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Look":
        """Return a look without differences that is described by `values`."""
        boxes = [(int(top), int(bottom), int(left), int(right)) for top, bottom, left, right in values["boxes"]]
        return cls(float(values["center"]), boxes)


def space_looks(frames: int, look_frames: int) -> list[float]:
    """Return the frames around which a clip has looks, about look_frames apart; none if it is too short for two."""
    count = round((frames - 1) / look_frames) + 1 if look_frames else 0
    return np.linspace(0, frames - 1, count).tolist() if count > 1 else []


def weigh_looks(centers: Sequence[float], t: int) -> list[tuple[int, float]]:
    """Return the numbers of the looks that frame t shows, at most two, with their weights, which add up to 1.

    centers: of the looks, ascending; the first is 0 and the last is the last frame.
    """
    for number, (earlier, later) in enumerate(pairwise(centers)):
        if t <= later:
            share = (t - earlier) / (later - earlier)
            return [pair for pair in ((number, 1 - share), (number + 1, share)) if pair[1] > 0]
    return []


def blend_looks(atlas: Tensor, looks: Sequence[Look], layer: int, t: int) -> Tensor:
    """Return a layer's atlas (1, 3, h, w) as it looks in frame t."""
    weights = weigh_looks([look.center for look in looks], t)
    if not weights:
        return atlas
    atlas = atlas.clone()
    for number, weight in weights:
        top, bottom, left, right = looks[number].boxes[layer]
        atlas[0, :, top:bottom, left:right].add_(looks[number].change(layer), alpha=weight * CHANGE_STEP)
    return atlas.clamp_(0, 1)
