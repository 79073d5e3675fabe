"""A model of a long clip: windows of frames, each a `GridModel` of its own, with one meaning of uv for all of them.

A window is an ordinary model of some neighbouring frames. Its atlases have a place in the atlases of the clip, so uv of
all windows mean the same there. Neighbouring windows overlap; in the frames of both, their mappings, opacities and
colours are blended over time. Windows that are not needed rest on disk, so memory does not grow with the clip.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from command_line import UserError
from config import Config
from grids.atlases import Size, sample_atlas, sample_shared_square, texels_per_uv
from grids.fields import device_constant
from grids.model import GridModel
from implicit_neural_networks import Layers, Sample
from media import Pixels, to_8_bit
from media.checkpoints import read_checkpoint

OVERLAP = 8  # Frames that two neighbouring windows have in common.
LONGEST_WHOLE = 1.5  # A clip of up to so many times `window_frames` is trained as a whole.
LEAST_COVERAGE = 0.05  # Weight of texels, see `unwrap.measure_coverage`, below which no frame shows them.
WINDOWS_IN_MEMORY = 2  # Most windows that are held in memory for rendering.
WINDOWS_FOLDER = "windows"  # Folder of the windows' files, beside the checkpoint.


@dataclass(frozen=True)
class Span:
    """Frames from `first` to before `end`."""

    first: int
    end: int

    def __contains__(self, t: int) -> bool:
        return self.first <= t < self.end

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class Placement:
    """A scale and a shift of positions: scale * position + (x, y)."""

    scale: float = 1.0
    x: float = 0.0
    y: float = 0.0

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Placement":
        """Return the placement that a (3, 3) matrix describes, whose axes have the same scale."""
        matrix = matrix / matrix[2, 2]
        return cls(float(matrix[0, 0] + matrix[1, 1]) / 2, float(matrix[0, 2]), float(matrix[1, 2]))

    @classmethod
    def of_texels(cls, size: Size) -> "Placement":
        """Return the placement that leads from uv to texels of an atlas of (height, width)."""
        return cls(texels_per_uv(size), (size[1] - 1) / 2, (size[0] - 1) / 2)

    @property
    def matrix(self) -> np.ndarray:
        """The placement as a (3, 3) matrix of homogeneous positions."""
        return np.array([[self.scale, 0, self.x], [0, self.scale, self.y], [0, 0, 1]])

    def then(self, after: "Placement") -> "Placement":
        """Return the placement that applies this one and then another."""
        return Placement(after.scale * self.scale, *after.apply(np.array([self.x, self.y])).tolist())

    def inverse(self) -> "Placement":
        """Return the placement that undoes this one."""
        return Placement(1 / self.scale, -self.x / self.scale, -self.y / self.scale)

    def apply(self, positions: np.ndarray) -> np.ndarray:
        """Move positions (..., 2)."""
        return positions * self.scale + np.array([self.x, self.y])

    def apply_to_tensor(self, positions: Tensor) -> Tensor:
        """Move positions (..., 2)."""
        return positions * self.scale + positions.new_tensor([self.x, self.y])


@dataclass(frozen=True)
class WindowLayer:
    """The atlas of one layer in one window."""

    size: Size  # (height, width) in texels
    placement: Placement  # from the layer's plane, or its unrolled cylinder, to texels
    # (1, 2, ny, nx): what is added to positions on the plane, so that they agree with earlier windows. Its nodes are
    # evenly spread from the first texel to the last.
    correction: Tensor = field(default_factory=lambda: torch.zeros(1, 2, 1, 1))
    is_seen: bool = True  # Some frame of the window shows the layer.

    def to_plane(self, uv: Tensor) -> Tensor:
        """Convert uv (..., 2) of the window to positions on the layer's plane, or its unrolled cylinder."""
        texels = Placement.of_texels(self.size).apply_to_tensor(uv)
        return self.placement.inverse().apply_to_tensor(texels) + self.correction_at(texels)

    def correction_at(self, texels: Tensor) -> Tensor:
        """Return the correction at texels (..., 2) of the window's atlas."""
        last = device_constant((max(self.size[1] - 1, 1), max(self.size[0] - 1, 1)), texels.device)
        grid, nodes = (texels / last * 2 - 1).flatten(0, -2)[None, None], self.correction.to(texels)
        change = functional.grid_sample(nodes, grid, padding_mode="border", align_corners=True)
        return change[0, :, 0].T.view(texels.shape)

    def values(self) -> dict[str, Any]:
        """Return the layer for a checkpoint."""
        place = place_values(self.placement)
        return {"size": list(self.size), "placement": place, "correction": self.correction, "is_seen": self.is_seen}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "WindowLayer":
        """Return the layer that `values` has stored."""
        height, width = values["size"]
        place, correction = Placement(*values["placement"]), values["correction"].cpu()
        return cls((int(height), int(width)), place, correction, bool(values["is_seen"]))


def is_long(frames: int, config: Config) -> bool:
    """Return whether a clip of so many frames is trained in windows."""
    return config.representation == "grid" and frames > LONGEST_WHOLE * config.window_frames


def plan_windows(frames: int, window_frames: int) -> list[Span]:
    """Divide a clip into windows of about so many frames, of about equal length, with OVERLAP frames in common."""
    count = max(1, round((frames - OVERLAP) / (window_frames - OVERLAP)))
    bounds = np.linspace(0, frames - OVERLAP, count + 1).round().astype(int).tolist()
    return [Span(first, end + OVERLAP) for first, end in pairwise(bounds)]


class WindowFiles:
    """The models of all windows, read from their files when they are needed. Threads may use it at the same time."""

    def __init__(self, paths: Sequence[Path], device: torch.device):
        self.paths, self.device = list(paths), device
        self.loaded: OrderedDict[int, GridModel] = OrderedDict()
        self.lock = Lock()

    def __getitem__(self, index: int) -> GridModel:
        """Return the model of a window. Raises UserError if its file is missing or damaged."""
        with self.lock:
            if index not in self.loaded:
                path = self.paths[index]
                checkpoint = read_checkpoint(path, self.device)
                self.loaded[index] = GridModel.from_checkpoint(checkpoint, path).to(self.device).eval()
            self.loaded.move_to_end(index)
            while len(self.loaded) > WINDOWS_IN_MEMORY:
                self.loaded.popitem(last=False)
            return self.loaded[index]

    def forget(self) -> None:
        """Drop all models from memory, because their files have changed."""
        with self.lock:
            self.loaded.clear()


@dataclass
class LayerAtlas:
    """The atlas of one layer of the whole clip."""

    image: Tensor  # (1, 3, h, w) in [0, 1]
    placement: Placement  # from the layer's plane, or its unrolled cylinder, to texels
    coverage: Tensor  # (h, w): in about how many frames each texel is visible
    # Scale and shift of uv to what they were before the atlas was ever enlarged, see `Model.uv_units`
    units: tuple[float, float, float] = (1.0, 0.0, 0.0)

    @property
    def size(self) -> Size:
        """(height, width) in texels."""
        return self.image.shape[2], self.image.shape[3]

    @property
    def uv_placement(self) -> Placement:
        """The placement from the layer's plane, or its unrolled cylinder, to uv."""
        return self.placement.then(Placement.of_texels(self.size).inverse())

    def values(self) -> dict[str, Any]:
        """Return the atlas for a checkpoint, with 8 bits per colour."""
        return {
            "image": (self.image[0] * 255).round().byte(),
            "placement": place_values(self.placement),
            "coverage": self.coverage.half(),
            "units": list(self.units),
        }

    @classmethod
    def from_values(cls, values: dict[str, Any], device: torch.device) -> "LayerAtlas":
        """Return the atlas that `values` has stored."""
        image, coverage = values["image"].to(device)[None].float() / 255, values["coverage"].to(device).float()
        units = values["units"]
        return cls(image, Placement(*values["placement"]), coverage, (units[0], units[1], units[2]))


class WindowedModel:
    """The model of a long clip; see `implicit_neural_networks.Model` for its interface."""

    def __init__(
        self,
        size: tuple[int, int, int],
        spans: Sequence[Span],
        window_layers: Sequence[Sequence[WindowLayer]],
        atlases: Sequence[LayerAtlas],
        windows: WindowFiles,
    ):
        """size: (T, H, W). spans: of the windows, in their order. window_layers: of each window, its L layers."""
        self.size, self.spans, self.window_layers = size, list(spans), [list(layers) for layers in window_layers]
        self.atlases, self.windows = list(atlases), windows
        self.layers = Layers.for_objects(len(self.atlases) - 1)
        centers = torch.tensor([layer.atlas_center for layer in self.layers])
        self.atlas_centers = centers[:, None].to(windows.device)
        images = [atlas.image.to(windows.device) for atlas in self.atlases]
        self.images = nn.ParameterList([nn.Parameter(image, requires_grad=False) for image in images])

    # windows

    def windows_at(self, t: int) -> list[tuple[int, float]]:
        """Return the windows that hold frame t, one or two, with their weights, which add up to 1."""
        found = [index for index, span in enumerate(self.spans) if t in span]
        if len(found) == 1:
            return [(found[0], 1.0)]
        earlier, later = found[0], found[-1]
        common = self.spans[earlier].end - self.spans[later].first
        weight = (t - self.spans[later].first + 1) / (common + 1)
        return [(earlier, 1 - weight), (later, weight)]

    def blend(self, t: int, evaluate: Callable[[GridModel, int, int], list[Tensor]]) -> list[Tensor]:
        """Return the weighted mean of some tensors over the windows that hold frame t.

        evaluate: returns the tensors for the model of a window, its number, and the frame's number in it.
        """
        total: list[Tensor] = []
        for index, weight in self.windows_at(t):
            parts = [part * weight for part in evaluate(self.windows[index], index, t - self.spans[index].first)]
            total = [whole + part for whole, part in zip(total, parts, strict=True)] if total else parts
        return total

    def to_clip_uv(self, uv: Tensor, index: int) -> Tensor:
        """Convert the uv of a window's layers (L, ..., 2) to those of the clip's."""
        layers = zip(uv, self.window_layers[index], self.atlases, strict=True)
        return torch.stack([atlas.uv_placement.apply_to_tensor(layer.to_plane(each)) for each, layer, atlas in layers])

    def check_size(self, size: tuple[int, int, int]) -> None:
        """Raise UserError if a clip of (T, H, W) has another size than the model."""
        if tuple(size) != self.size:
            own, other = (f"{frames} frames of {width} x {height}" for frames, height, width in (self.size, size))
            raise UserError(f"the run was trained on {own}, the clip has {other}; use the clip that it was trained on")

    # the interface of models

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """Evaluate all pixels of frame t; see `Model.frame_sample`."""
        self.check_size(size)

        def evaluate(window: GridModel, index: int, number: int) -> list[Tensor]:
            sample = window.frame_sample(number, window.shape.size, full_range, with_colors, output_size)
            light = [] if sample.light is None else [sample.light]
            return [self.to_clip_uv(sample.uv, index), sample.alpha, sample.colors, *light]

        return Sample(*self.blend(t, evaluate))

    def lattice_uv(self, t: int, rows_px: Tensor, columns_px: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return the uv of all layers at crossings of rows and columns; see `Model.lattice_uv`."""
        self.check_size(size)

        def evaluate(window: GridModel, index: int, number: int) -> list[Tensor]:
            return [self.to_clip_uv(window.lattice_uv(number, rows_px, columns_px, window.shape.size), index)]

        return self.blend(t, evaluate)[0]

    def colors(self, uv: Tensor) -> Tensor:
        """Return the colours of the clip's atlases at uv (L, N, 2), (L, N, 3) in [0, 1]."""
        return torch.stack([self.layer_color(layer_uv, layer) for layer, layer_uv in enumerate(uv)])

    def layer_color(self, uv: Tensor, layer: int) -> Tensor:
        """Return the colour of one of the clip's atlases at uv (N, 2), (N, 3) in [0, 1]."""
        return sample_atlas(self.images[layer], self.atlases[layer].size, uv)

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """Return the colour at positions in the shared square; see `Model.atlas_color`."""
        return sample_shared_square(atlas_uv, self.atlas_centers[:, 0], self.layer_color)

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Return the pixels per unit of a layer's uv, the median over the windows; see `Model.px_per_uv`."""
        self.check_size(size)
        scales, is_seen = [], []
        for index, layers in enumerate(self.window_layers):
            window = self.windows[index]
            px_per_texel = window.px_per_uv(layer, window.shape.size) / texels_per_uv(layers[layer].size)
            scales.append(px_per_texel * layers[layer].placement.scale / self.atlases[layer].uv_placement.scale)
            is_seen.append(layers[layer].is_seen)
        return float(np.median(np.array(scales)[is_seen if any(is_seen) else slice(None)]))

    def projection(self, layer: int) -> str:
        """Return the projection of a layer's atlas; see `Model.projection`."""
        return self.windows[0].projection(layer)

    def uv_units(self, layer: int) -> tuple[float, float, float]:
        """See `Model.uv_units`."""
        return self.atlases[layer].units

    def mapping_kinks(self) -> tuple[list[float], list[float]]:
        """Return the rows and columns at which mappings have kinks; they are the same in all windows."""
        return self.windows[0].mapping_kinks()

    def atlas_images(self) -> list[Pixels]:
        """Return an image (h, w, 3) uint8 of each layer's atlas, black where no frame shows it."""
        return [
            to_8_bit((atlas.image[0] * (atlas.coverage > LEAST_COVERAGE)).permute(1, 2, 0).cpu().numpy())
            for atlas in self.atlases
        ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the clip's atlases; the other parameters are those of the windows."""
        return self.images.parameters()

    def eval(self) -> Self:
        """Return the model, which has no other mode."""
        return self

    # files

    def checkpoint(self) -> dict[str, Any]:
        """Return the content of the checkpoint; the windows have files of their own."""
        return {
            "windows": {
                "size": list(self.size),
                "spans": [[span.first, span.end] for span in self.spans],
                "files": [path.name for path in self.windows.paths],
                "layers": [[layer.values() for layer in layers] for layers in self.window_layers],
                "atlases": [atlas.values() for atlas in self.atlases],
            }
        }

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: Path, device: torch.device) -> "WindowedModel":
        """Return the model in a checkpoint. Raises UserError if the files of windows are missing, or parts of it."""
        try:
            values = checkpoint["windows"]
            paths = [path.parent / WINDOWS_FOLDER / name for name in values["files"]]
            spans = [Span(int(first), int(end)) for first, end in values["spans"]]
            window_layers = [[WindowLayer.from_values(layer) for layer in layers] for layers in values["layers"]]
            atlases = [LayerAtlas.from_values(atlas, device) for atlas in values["atlases"]]
            size = (values["size"][0], values["size"][1], values["size"][2])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise UserError(f"{path}: its list of windows is damaged or incomplete; train again") from None
        if missing := [each for each in paths if not each.is_file()]:
            raise UserError(f"{missing[0]}: no such file; a run of a long clip needs its folder {WINDOWS_FOLDER}, too")
        return cls(size, spans, window_layers, atlases, WindowFiles(paths, device))


def place_values(placement: Placement) -> list[float]:
    """Return the numbers of a placement, for a checkpoint."""
    return [placement.scale, placement.x, placement.y]
