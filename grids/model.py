"""The explicit representation: mappings, opacities, atlases and light as grids, behind the interface of AtlasModel."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from command_line import UserError
from config import Config, Levels
from grids.fields import Grid, Lattice, count_nodes, device_constant, sample_nodes, to_device_async
from implicit_neural_networks import Layers, Sample
from media import Pixels, to_8_bit

BOX_MARGIN = 0.15  # of an object's box, around it, where it may still grow
LIGHTEST = 0.7  # natural logarithm of the strongest light and shadow


@dataclass(frozen=True)
class Spacing:
    """How far apart nodes lie: (pixels, frames) of each grid of a field."""

    mapping: Levels
    alpha: Levels
    light_px: int  # 0: no light

    @classmethod
    def from_config(cls, config: Config) -> "Spacing":
        """The spacing that a config asks for."""
        light_px = config.grid_light_px if config.light else 0
        return cls(config.grid_levels_mapping, config.grid_levels_alpha, light_px)

    @classmethod
    def from_checkpoint(cls, shape: dict[str, Any]) -> "Spacing":
        """The spacing that a checkpoint's `grid_shape` tells."""
        mapping, alpha = (tuple(map(tuple, shape["spacing"][name])) for name in ("mapping", "alpha"))
        return cls(mapping, alpha, int(shape["spacing"]["light_px"]))


@dataclass(frozen=True)
class Shape:
    """What the sizes of all grids follow from; it comes from a clip and lies in the checkpoint."""

    size: tuple[int, int, int]  # (T, H, W)
    atlas_sizes: tuple[tuple[int, int], ...]  # (height, width) of each layer's atlas, in texels
    spacing: Spacing


class GridModel(nn.Module):
    """Everything about a clip in explicit grids. Layers: foregrounds front to back, the background last.

    A mapping is the closed-form start, a transform per frame from pixels to texels of the layer's atlas, plus grids of
    displacements in texels. An atlas is an image of the needed size; u and v share a scale, its longer side is [-1, 1].
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.layers = Layers.for_objects(len(shape.atlas_sizes) - 1)
        (frames, height, width), spacing = shape.size, shape.spacing
        foregrounds = len(self.layers.foregrounds)

        def grids(channels: int, levels: Levels) -> nn.ModuleList:
            # Levels that come to the same nodes are one grid; the last level stays the last.
            nodes = dict.fromkeys(count_nodes(shape.size, *level) for level in reversed(levels))
            return nn.ModuleList([Grid(channels, each, frames) for each in reversed(nodes)])

        self.mappings = nn.ModuleList([grids(2, spacing.mapping) for _ in self.layers])
        self.alphas = nn.ModuleList([grids(1, spacing.alpha) for _ in range(foregrounds)])
        self.light = grids(3, ((spacing.light_px, 1),)) if spacing.light_px else nn.ModuleList()
        self.atlases = nn.ParameterList([torch.zeros(1, 3, *size) for size in shape.atlas_sizes])
        self.register_buffer("transforms", torch.eye(3).repeat(len(self.layers), frames, 1, 1))  # pixels -> texels
        whole = torch.tensor([0, height, 0, width])
        self.register_buffer("boxes", whole.repeat(foregrounds, frames, 1))  # top, bottom, left, right of each object
        centers = torch.tensor([layer.atlas_center for layer in self.layers])
        self.register_buffer("atlas_centers", centers[:, None], persistent=False)
        self.cpu_boxes: Tensor | None = None

    # what a layer's numbers mean

    def texels_per_unit(self, layer: int) -> float:
        """Texels of the full-sized atlas in one unit of uv."""
        return max(max(self.shape.atlas_sizes[layer]) - 1, 1) / 2

    def texel_center(self, layer: int) -> Tensor:
        """(2,) (x, y) texel at uv = 0."""
        height, width = self.shape.atlas_sizes[layer]
        return self.transforms.new_tensor([(width - 1) / 2, (height - 1) / 2])

    def pixel_scale(self, layer: int) -> Tensor:
        """(T,) texels per pixel of the closed-form start, at the middle of each frame."""
        return start_jacobians(self.transforms[layer], self.shape.size).det().abs().sqrt()

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Pixels of a clip of (T, H, W) per unit of a layer's uv, at its usual scale in the frames that show it."""
        self.check_size(size)
        scales = self.pixel_scale(layer)
        if layer < len(self.alphas):
            shown = self.boxes[layer, :, 1] > self.boxes[layer, :, 0]
            scales = scales[shown] if bool(shown.any()) else scales
        return self.texels_per_unit(layer) / float(scales.median())

    def boxes_on_cpu(self) -> Tensor:
        """(F, T, 4) the objects' boxes on the CPU, copied once; they don't change in training."""
        if self.cpu_boxes is None:
            self.cpu_boxes = self.boxes.cpu()
        return self.cpu_boxes

    # evaluating

    def at_frames(self, *t: int) -> "GridFrames":
        """The model at some frames, ready to be evaluated on lattices."""
        return GridFrames(self, torch.tensor(t))

    def check_size(self, size: tuple[int, int, int]) -> None:
        """Raise UserError for a clip of another (T, H, W) than the model's: its grids lie over the clip's pixels."""
        if tuple(size) != self.shape.size:
            own, other = ("{0} frames of {2} x {1}".format(*each) for each in (self.shape.size, size))
            raise UserError(f"the run was trained on {own}, the clip has {other}; use the clip that it was trained on")

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """See `Model.frame_sample`. full_range changes nothing: opacity always reaches 0 and 1 here."""
        self.check_size(size)
        view, lattice = self.at_frames(t), Lattice.of_raster(output_size or (size[2], size[1]), size[1:])
        texels = torch.stack([view.texels(layer, lattice)[0].flatten(1).T for layer in range(len(self.layers))])
        alpha = torch.stack([view.alpha(index, lattice)[0].flatten(1).T for index in range(len(self.alphas))])
        uv = torch.stack([self.to_uv(each, layer) for layer, each in enumerate(texels)])
        light = view.light(lattice)[0].flatten(1).T if self.light else None
        return Sample(uv, alpha, self.colors(uv) if with_colors else uv.new_zeros(len(uv), 0, 3), light)

    def to_uv(self, texels: Tensor, layer: int) -> Tensor:
        """Texels (..., 2) of a layer's full-sized atlas to its own uv."""
        return (texels - self.texel_center(layer)) / self.texels_per_unit(layer)

    def colors(self, uv: Tensor) -> Tensor:
        """(L, N, 2) -> (L, N, 3) in [0, 1]."""
        return torch.stack([self.layer_color(each, layer) for layer, each in enumerate(uv)])

    def layer_color(self, uv: Tensor, layer: int) -> Tensor:
        """(N, 2) -> (N, 3) in [0, 1] of one layer's atlas."""
        texels = uv * self.texels_per_unit(layer) + self.texel_center(layer)
        places = to_sampling_grid(texels, self.shape.atlas_sizes[layer])[None, None]
        values = functional.grid_sample(self.atlases[layer], places, padding_mode="border", align_corners=False)
        return values[0, :, 0].T.clamp(0, 1)

    def to_atlas(self, uv: Tensor) -> Tensor:
        """Layers' own squares (L, N, 2) to the shared one: half the size, at each layer's center."""
        return 0.5 * uv + self.atlas_centers

    def atlas_color(self, places: Tensor) -> Tensor:
        """(N, 2) places in the shared atlas square -> (N, 3) in [0, 1]; black where no layer's square is.

        Where squares touch, the layer further in front has the border.
        """
        colors = places.new_zeros(len(places), 3)
        for layer, center in reversed(list(enumerate(self.atlas_centers[:, 0]))):
            own = ((places - center).abs() <= 0.5 + 1e-6).all(1)
            colors[own] = self.layer_color(2 * (places[own] - center), layer)
        return colors

    def atlas_images(self) -> list[Pixels]:
        """The picture (h, w, 3) uint8 of each layer's atlas, at the resolution that it has now."""
        return [to_8_bit(atlas.detach()[0].permute(1, 2, 0).cpu().numpy()) for atlas in self.atlases]

    # files

    def checkpoint(self) -> dict[str, Any]:
        """State under keys of its own; the shape is in it, since it comes from the clip."""
        shape = {
            "size": list(self.shape.size),
            "atlas_sizes": [list(size) for size in self.shape.atlas_sizes],
            "spacing": asdict(self.shape.spacing),
        }
        return {"grid_shape": shape, "grid_state_dict": self.state_dict()}

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: Path) -> "GridModel":
        """The model in a checkpoint. Raises UserError if it holds another representation or misses parts."""
        try:
            shape, state = checkpoint["grid_shape"], dict(checkpoint["grid_state_dict"])
            sizes = tuple(tuple(size) for size in shape["atlas_sizes"])
            model = cls(Shape(tuple(shape["size"]), sizes, Spacing.from_checkpoint(shape)))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(
                f"{path}: holds no grids, though config.json beside it says representation 'grid'; "
                "use the config.json that was written with the checkpoint"
            ) from None
        for layer, parameter in enumerate(model.atlases):
            saved = state.get(f"atlases.{layer}")
            if saved is not None and saved.shape != parameter.shape:  # training was at a coarser stage
                model.atlases[layer] = nn.Parameter(torch.zeros_like(saved))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path}: grids do not fit ({str(error).splitlines()[-1].strip()}); train again") from None
        return model


class GridFrames:
    """A model at K frames. The nodes of per-frame grids are leaves of their own, so that a step touches only them."""

    def __init__(self, model: GridModel, t: Tensor, training: bool = False):
        """t (K,): frame numbers, on the CPU."""
        self.model, self.t_on_cpu = model, t
        self.t = t = to_device_async(t, model.transforms.device)
        self.leaves: dict[str, Tensor] = {}
        self.nodes: dict[str, list[Tensor]] = {}
        for name, group in grid_groups(model).items():
            self.nodes[name] = []
            for level, grid in enumerate(group):
                nodes = grid.values_at(t)
                if training and grid.is_per_frame:
                    nodes = self.leaves[f"{name}.{level}"] = nodes.detach().requires_grad_()
                self.nodes[name].append(nodes)

    def evaluate_field(self, name: str, lattice: Lattice) -> Tensor:
        """Sum of a field's grids on a lattice (K, C, h, w)."""
        return sum(lattice.interpolate(nodes) for nodes in self.nodes[name])

    def texels(self, layer: int, lattice: Lattice) -> Tensor:
        """(K, 2, h, w): the place of every lattice pixel in the layer's full-sized atlas."""
        return self.start_texels(layer, lattice) + self.evaluate_field(f"mappings.{layer}", lattice)

    def start_texels(self, layer: int, lattice: Lattice) -> Tensor:
        """(K, 2, h, w): the closed-form start."""
        transforms = self.model.transforms[layer, self.t]
        moved = transforms @ lattice.points(transforms.device)
        if self.model.layers[layer].motion_kind == "homography":
            moved = moved[:, :2] / moved[:, 2:]
        return moved[:, :2].unflatten(2, lattice.shape)

    def logit(self, index: int, lattice: Lattice) -> Tensor:
        """(K, 1, h, w): raw opacity of an object, as if alone; only meaningful in its box."""
        return self.evaluate_field(f"alphas.{index}", lattice)

    def box(self, index: int, lattice: Lattice) -> tuple[slice, slice]:
        """Rows and columns of the lattice that hold the object's boxes in all these frames; at least one of each."""
        boxes = self.model.boxes_on_cpu()[index, self.t_on_cpu]
        shown = boxes[boxes[:, 1] > boxes[:, 0]]
        low, high = (shown.amin(0), shown.amax(0)) if len(shown) else (boxes[0], boxes[0])
        return tuple(
            axis_slice(axis, int(low[first]), int(high[first + 1]))
            for axis, first in ((lattice.rows_px, 0), (lattice.columns_px, 2))
        )

    def box_mask(self, index: int, lattice: Lattice) -> Tensor:
        """(K, 1, h, w): 1 within the object's box of each frame, else 0: beyond it the object is not."""
        return lattice.box_mask(self.model.boxes_on_cpu()[index, self.t_on_cpu], self.t.device)

    def alpha(self, index: int, lattice: Lattice) -> Tensor:
        """(K, 1, h, w): opacity of an object, zero outside its box."""
        rows, columns = self.box(index, lattice)
        part = lattice.crop(rows, columns)
        alpha = torch.zeros(len(self.t), 1, *lattice.shape, device=self.t.device)
        alpha[:, :, rows, columns] = torch.sigmoid(self.logit(index, part)) * self.box_mask(index, part)
        return alpha

    def light(self, lattice: Lattice) -> Tensor:
        """(K, 3, h, w): factor of the colours, close to 1."""
        return torch.exp(LIGHTEST * torch.tanh(self.evaluate_field("light", lattice) / LIGHTEST))

    def color(self, layer: int, texels: Tensor) -> Tensor:
        """(K, 3, h, w) of the atlas at texels (K, 2, h, w), which count in the full-sized atlas."""
        grid = to_sampling_grid(texels.permute(0, 2, 3, 1), self.model.shape.atlas_sizes[layer])
        atlas = self.model.atlases[layer].expand(len(texels), -1, -1, -1)  # a batch: both cores work
        return functional.grid_sample(atlas, grid, padding_mode="border", align_corners=False)

    def map_points(self, layer: int, frames: Tensor, points_px: Tensor) -> Tensor:
        """(M, 2, N): places of points (M, 2, N) of M of these frames, given by their numbers within the K."""
        transforms = self.model.transforms[layer, self.t[frames]]
        moved = transforms @ torch.cat((points_px, torch.ones_like(points_px[:, :1])), dim=1)
        return moved[:, :2] / moved[:, 2:] + self.sample_field(f"mappings.{layer}", frames, points_px)

    def sample_field(self, name: str, frames: Tensor, points_px: Tensor) -> Tensor:
        """(M, C, N): a field at any points (M, 2, N) of M of these frames."""
        return sum(sample_nodes(nodes[frames], points_px, self.model.shape.size[1:]) for nodes in self.nodes[name])


def grid_groups(model: GridModel) -> dict[str, nn.ModuleList]:
    """The model's fields by name, each a list of grids that are added up."""
    groups = {f"mappings.{layer}": group for layer, group in enumerate(model.mappings)}
    groups |= {f"alphas.{index}": group for index, group in enumerate(model.alphas)}
    return groups | ({"light": model.light} if model.light else {})


def to_sampling_grid(texels: Tensor, size: tuple[int, int]) -> Tensor:
    """Texels (..., 2) of an image of (height, width) to grid_sample's coordinates with align_corners=False.

    These hold for the image at any resolution: coarse to fine, a place keeps its coordinates.
    """
    height, width = size
    return (texels + 0.5) * device_constant((2 / width, 2 / height), texels.device) - 1


def start_jacobians(transforms: Tensor, size: tuple[int, int, int]) -> Tensor:
    """(T, 2, 2): derivative of transforms (T, 3, 3) at the middle of the frame."""
    _, height, width = size
    middle = transforms.new_tensor([(width - 1) / 2, (height - 1) / 2, 1.0])
    moved = transforms @ middle
    place = moved[:, :2] / moved[:, 2:]
    return (transforms[:, :2, :2] - place[:, :, None] * transforms[:, 2:, :2]) / moved[:, 2:, None]


def axis_slice(axis: Tensor, first: float, end: float) -> slice:
    """The part of a lattice's axis, on the CPU, within [first, end) pixels; at least one."""
    inside = torch.nonzero((axis >= first) & (axis < end)).flatten()
    if len(inside) == 0:
        nearest = int((axis - first).abs().argmin())
        return slice(nearest, nearest + 1)
    return slice(int(inside[0]), int(inside[-1]) + 1)
