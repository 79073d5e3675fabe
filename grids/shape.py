"""What decides the sizes of all grids of a model: spacing of nodes, size of the clip, and sizes of the atlases."""

from dataclasses import dataclass
from typing import Any

from config import Config, Levels


@dataclass(frozen=True)
class Spacing:
    """Distances (pixels, frames) between the nodes of each grid of a field."""

    mapping: Levels
    alpha: Levels
    light_px: int  # 0: no light

    @classmethod
    def from_config(cls, config: Config) -> "Spacing":
        """Return the spacing that a config asks for."""
        light_px = config.grid_light_px if config.light else 0
        return cls(config.grid_levels_mapping, config.grid_levels_alpha, light_px)

    @classmethod
    def from_checkpoint(cls, shape: dict[str, Any]) -> "Spacing":
        """Return the spacing in the `grid_shape` of a checkpoint."""
        mapping, alpha = (tuple(map(tuple, shape["spacing"][name])) for name in ("mapping", "alpha"))
        return cls(mapping, alpha, int(shape["spacing"]["light_px"]))


@dataclass(frozen=True)
class Shape:
    """Everything that decides the sizes of all grids. It follows from a clip and is stored in the checkpoint."""

    size: tuple[int, int, int]  # (T, H, W)
    atlas_sizes: tuple[tuple[int, int], ...]  # (height, width) of each layer's atlas, in texels
    spacing: Spacing
    has_cylinder: bool = False  # the background's atlas is an unrolled cylinder, not a plane
    # (left, top, width, height) of the part of each atlas that it had before it was enlarged, in texels; empty: all
    first_parts: tuple[tuple[int, int, int, int], ...] = ()

    def first_part(self, layer: int) -> tuple[int, int, int, int]:
        """Return the part (left, top, width, height) of a layer's atlas that it had before it was enlarged."""
        height, width = self.atlas_sizes[layer]
        return self.first_parts[layer] if self.first_parts else (0, 0, width, height)
