"""The explicit representation: mappings, opacities, atlases and light as grids. It has the interface `Model`."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from command_line import UserError
from config import Levels
from grids.atlases import sample_atlas, sample_shared_square, sampling_units, texels_per_uv
from grids.fields import Grid, Lattice, add_tensors, count_nodes, device_constant, sample_nodes, to_device_async
from grids.looks import Look, blend_looks
from grids.shape import Shape, Spacing
from grids.surfaces import meet_surface, middle_jacobians
from implicit_neural_networks import Layers, Sample
from media import Pixels, to_8_bit

LOGIT_STEP = 1 / 16  # Unit in which the logits of kept masks are stored as 8-bit integers.
# Where a mask is kept, training changes its logit by at most LEARNED_FACTOR times its absolute value, which counts up
# to LEARNED_LIMIT. So the sign never changes: a pixel that is more than half opaque in the mask stays so.
LEARNED_FACTOR, LEARNED_LIMIT = 0.9, 1.5
LEAST_STROKE_LOGIT = 3.5  # Logit of a mask, up to its sign, from which on it is kept in every frame.
BOX_MARGIN = 0.15  # Share of an object's extent that its box has around it on each side, so that it can still grow.
TEXEL_UNITS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # the 3 x 3 matrix that leaves texels as they are
LARGEST_LOG_LIGHT = 0.7  # Natural logarithm of the strongest light; its negative is that of the darkest shadow.


class GridModel(nn.Module):
    """A clip in explicit grids. Layers are ordered front to back: objects first, the background last.

    A mapping is the closed-form start, one transform per frame from pixels to texels of the layer's atlas, plus grids
    of displacements in texels. Where the camera turns far, the background's transforms lead to rays instead, which meet
    a cylinder. An atlas is an image that is as large as its layer needs. Its u and v share a scale, and
    its longer side covers [-1, 1].
    """

    transforms: Tensor  # (L, T, 3, 3) closed-form start, from pixels to texels, or to rays that meet the cylinder
    unrolled_to_texels: Tensor  # (3, 3) of the background's cylinder; the identity if its atlas is a plane
    boxes: Tensor  # (F, T, 4) top, bottom, left, right of each object in pixels; bottom and right are exclusive
    # (F, T, H, W) int8: logits of kept masks and of strokes in units of LOGIT_STEP, 0 where there are none;
    # (F, 0, 0, 0) if there are none at all
    mask_logits: Tensor
    is_kept: Tensor  # (F, T) bool: frames whose mask is kept
    # (F, T, H, W) uint8: opacity with a soft outline, solved at the end of training; (F, 0, 0, 0) before
    mattes: Tensor
    atlas_centers: Tensor  # (L, 1, 2) centers of the layers in the shared atlas square

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.layers = Layers.for_objects(len(shape.atlas_sizes) - 1)
        (frames, height, width), spacing = shape.size, shape.spacing
        objects = len(self.layers.foregrounds)

        def build_grids(channels: int, levels: Levels) -> nn.ModuleList:
            # Levels with equal numbers of nodes become one grid; the last level stays the last.
            nodes = dict.fromkeys(count_nodes(shape.size, *level) for level in reversed(levels))
            return nn.ModuleList([Grid(channels, counts, frames) for counts in reversed(nodes)])

        self.mappings = nn.ModuleList([build_grids(2, spacing.mapping) for _ in self.layers])
        self.alphas = nn.ModuleList([build_grids(1, spacing.alpha) for _ in range(objects)])
        self.light = build_grids(3, ((spacing.light_px, 1),)) if spacing.light_px else nn.ModuleList()
        self.atlases = nn.ParameterList([torch.zeros(1, 3, *size) for size in shape.atlas_sizes])
        self.register_buffer("transforms", torch.eye(3).repeat(len(self.layers), frames, 1, 1))
        self.register_buffer("unrolled_to_texels", torch.eye(3))
        whole_frame = torch.tensor([0, height, 0, width])
        self.register_buffer("boxes", whole_frame.repeat(objects, frames, 1))
        self.register_buffer("mask_logits", torch.zeros(objects, 0, 0, 0, dtype=torch.int8))
        self.register_buffer("is_kept", torch.zeros(objects, frames, dtype=torch.bool))
        self.register_buffer("mattes", torch.zeros(objects, 0, 0, 0, dtype=torch.uint8))
        # Layers whose mapping training leaves as it is.
        self.rigid_layers: frozenset[int] = frozenset()
        self.looks: Any = nn.ModuleList()  # of `Look`, ascending by frame; fitted at the end of training
        centers = torch.tensor([layer.atlas_center for layer in self.layers])
        self.register_buffer("atlas_centers", centers[:, None], persistent=False)
        self.cpu_boxes: Tensor | None = None

    # grids, units and boxes

    def fields_by_name(self) -> dict[str, list[Grid]]:
        """Return the grids of each field, by its name. A field is the sum of its grids."""
        fields = {f"mappings.{layer}": grids for layer, grids in enumerate(self.mappings)}
        fields |= {f"alphas.{index}": grids for index, grids in enumerate(self.alphas)}
        if len(self.light):
            fields["light"] = self.light
        return {name: cast("list[Grid]", list(grids.children())) for name, grids in fields.items()}

    def last_alpha_grid(self, index: int) -> Grid:
        """Return the last grid of an object's opacity, which is the finest one if levels go from coarse to fine."""
        return self.fields_by_name()[f"alphas.{index}"][-1]

    def keep_masks(self, logits: Tensor, is_kept: Tensor) -> None:
        """Keep masks in some frames: opacity then follows them, and training only softens their outline.

        logits (F, T, H, W): int8, in units of LOGIT_STEP. is_kept (F, T): bool. In other frames single pixels, such as
        those of strokes, may have logits, which are kept in the same way.
        """
        self.mask_logits, self.is_kept = logits, is_kept

    def forget_mattes(self) -> None:
        """Drop the solved opacity, because training changes the learned one, from which it is solved again."""
        self.mattes = self.mattes.new_zeros(len(self.alphas), 0, 0, 0)

    def forget_looks(self) -> None:
        """Drop the looks, because training changes the atlases, from which they differ."""
        self.looks = nn.ModuleList()

    def texels_per_uv(self, layer: int) -> float:
        """Return the texels of a layer's full-sized atlas per unit of its uv."""
        return texels_per_uv(self.shape.atlas_sizes[layer])

    def texel_center(self, layer: int) -> Tensor:
        """Return the texel (x, y) at uv = 0, (2,)."""
        height, width = self.shape.atlas_sizes[layer]
        return self.transforms.new_tensor([(width - 1) / 2, (height - 1) / 2])

    def uv_units(self, layer: int) -> tuple[float, float, float]:
        """See `Model.uv_units`."""
        (height, width), (left, top, first_width, first_height) = (
            self.shape.atlas_sizes[layer],
            self.shape.first_part(layer),
        )
        first_texels_per_uv = texels_per_uv((first_height, first_width))
        return (
            self.texels_per_uv(layer) / first_texels_per_uv,
            ((width - first_width) / 2 - left) / first_texels_per_uv,
            ((height - first_height) / 2 - top) / first_texels_per_uv,
        )

    def surface(self, layer: int) -> Tensor | None:
        """Return the surface of a layer's atlas, as the functions in `grids.surfaces` take it."""
        return self.unrolled_to_texels if self.shape.has_cylinder and self.layers[layer].is_background else None

    def projection(self, layer: int) -> str:
        """Return the projection of a layer's atlas; see `Model.projection`."""
        return "plane" if self.surface(layer) is None else "cylinder"

    def mapping_kinks(self) -> tuple[list[float], list[float]]:
        """Return the rows and columns, in pixels, on which the nodes of mappings lie."""
        height, width = self.shape.size[1:]
        grids = [grid.values.shape for grid in self.fields_by_name()["mappings.0"]]
        rows, columns = ({step for shape in grids for step in node_steps(shape[axis])} for axis in (2, 3))
        return [step * (height - 1) for step in sorted(rows)], [step * (width - 1) for step in sorted(columns)]

    def lattice_uv(self, t: int, rows_px: Tensor, columns_px: Tensor, size: tuple[int, int, int]) -> Tensor:
        """See `Model.lattice_uv`. Raises UserError if the model was trained on a clip of another size."""
        self.check_size(size)
        grid_frames, lattice = self.at_frames(t), Lattice(rows_px.float(), columns_px.float(), size[1:])
        texels = [grid_frames.texels(layer, lattice)[0].permute(1, 2, 0) for layer in range(len(self.layers))]
        return torch.stack([self.to_uv(layer_texels, layer) for layer, layer_texels in enumerate(texels)])

    def start_jacobians(self, layer: int) -> Tensor:
        """Return the derivatives of a layer's closed-form start at the middle of each frame, (T, 2, 2)."""
        return middle_jacobians(self.transforms[layer], self.shape.size[1:], self.surface(layer))

    def texels_per_pixel(self, layer: int) -> Tensor:
        """Return the scale of a layer's closed-form start at the middle of each frame, texels per pixel, (T,)."""
        return self.start_jacobians(layer).det().abs().sqrt()

    def px_per_uv(self, layer: int, size: tuple[int, int, int]) -> float:
        """Return the pixels of a clip of (T, H, W) per unit of a layer's uv.

        It is the median over the frames that show the layer. Raises UserError if the model was trained on another size.
        """
        self.check_size(size)
        scales = self.texels_per_pixel(layer)
        if layer < len(self.alphas):
            is_visible = self.boxes[layer, :, 1] > self.boxes[layer, :, 0]
            scales = scales[is_visible] if bool(is_visible.any()) else scales
        return self.texels_per_uv(layer) / float(scales.median())

    def boxes_on_cpu(self) -> Tensor:
        """Return the objects' boxes on the CPU, (F, T, 4). They are copied once, because training keeps them."""
        if self.cpu_boxes is None:
            self.cpu_boxes = self.boxes.cpu()
        return self.cpu_boxes

    def check_size(self, size: tuple[int, int, int]) -> None:
        """Raise UserError if a clip of (T, H, W) has another size than the model, whose grids cover a clip's pixels."""
        if tuple(size) != self.shape.size:
            own, other = (f"{frames} frames of {width} x {height}" for frames, height, width in (self.shape.size, size))
            raise UserError(f"the run was trained on {own}, the clip has {other}; use the clip that it was trained on")

    # evaluating

    def at_frames(self, *t: int) -> "GridFrames":
        """Return the model at some frames, which can be evaluated on lattices."""
        return GridFrames(self, torch.tensor(t))

    def frame_sample(
        self,
        t: int,
        size: tuple[int, int, int],
        full_range: bool,
        with_colors: bool,
        output_size: tuple[int, int] | None = None,
    ) -> Sample:
        """Evaluate all pixels of frame t; see `Model.frame_sample`.

        full_range changes nothing, because the opacity of grids always reaches 0 and 1. Raises UserError if the model
        was trained on a clip of another size.
        """
        self.check_size(size)
        grid_frames, lattice = self.at_frames(t), Lattice.of_raster(output_size or (size[2], size[1]), size[1:])
        texels = torch.stack([grid_frames.texels(layer, lattice)[0].flatten(1).T for layer in range(len(self.layers))])
        alpha = torch.stack([grid_frames.alpha(index, lattice)[0].flatten(1).T for index in range(len(self.alphas))])
        uv = torch.stack([self.to_uv(layer_texels, layer) for layer, layer_texels in enumerate(texels)])
        light = grid_frames.light(lattice)[0].flatten(1).T if len(self.light) else None
        if not with_colors:
            return Sample(uv, alpha, uv.new_zeros(len(uv), 0, 3), light)
        colors = [
            sample_atlas(self.atlas_at(t, layer), self.shape.atlas_sizes[layer], uv[layer]) for layer in range(len(uv))
        ]
        return Sample(uv, alpha, torch.stack(colors), light)

    def atlas_at(self, t: int, layer: int) -> Tensor:
        """Return a layer's atlas (1, 3, h, w) as it looks in frame t."""
        return blend_looks(self.atlases[layer], self.looks, layer, t)

    def to_uv(self, texels: Tensor, layer: int) -> Tensor:
        """Convert texels (..., 2) of a layer's full-sized atlas to the layer's own uv."""
        return (texels - self.texel_center(layer)) / self.texels_per_uv(layer)

    def colors(self, uv: Tensor) -> Tensor:
        """Return the colour of every layer at uv (L, N, 2), (L, N, 3) in [0, 1]."""
        return torch.stack([self.layer_color(layer_uv, layer) for layer, layer_uv in enumerate(uv)])

    def layer_color(self, uv: Tensor, layer: int) -> Tensor:
        """Return the colour of one layer's atlas at uv (N, 2), (N, 3) in [0, 1]."""
        return sample_atlas(self.atlases[layer], self.shape.atlas_sizes[layer], uv)

    def atlas_color(self, atlas_uv: Tensor) -> Tensor:
        """Return the colour at positions in the shared square; see `Model.atlas_color`."""
        return sample_shared_square(atlas_uv, self.atlas_centers[:, 0], self.layer_color)

    def atlas_images(self) -> list[Pixels]:
        """Return an image (h, w, 3) uint8 of each layer's atlas, at the resolution that it has now."""
        return [to_8_bit(atlas.detach()[0].permute(1, 2, 0).cpu().numpy()) for atlas in self.atlases]

    # files

    def checkpoint(self) -> dict[str, Any]:
        """Return the model's state and shape. The shape is included, because it follows from the clip."""
        shape = {
            "size": list(self.shape.size),
            "atlas_sizes": [list(size) for size in self.shape.atlas_sizes],
            "spacing": asdict(self.shape.spacing),
            "has_cylinder": self.shape.has_cylinder,
            "first_parts": [list(part) for part in self.shape.first_parts],
            "rigid_layers": sorted(self.rigid_layers),
            "looks": [look.values() for look in self.looks],
        }
        return {"grid_shape": shape, "grid_state_dict": self.state_dict()}

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: Path) -> "GridModel":
        """Return the model in a checkpoint. Raises UserError if it has another representation or lacks parts."""
        if "spacing" not in checkpoint.get("grid_shape", {"spacing"}):
            raise UserError(f"{path}: was written before the spacing of grids was stored; train again")
        try:
            shape, state = checkpoint["grid_shape"], dict(checkpoint["grid_state_dict"])
            sizes = tuple(tuple(size) for size in shape["atlas_sizes"])
            has_cylinder = bool(shape.get("has_cylinder", False))
            first_parts = tuple(tuple(part) for part in shape.get("first_parts", ()))
            spacing = Spacing.from_checkpoint(shape)
            model = cls(Shape(tuple(shape["size"]), sizes, spacing, has_cylinder, first_parts))
            model.rigid_layers = frozenset(shape.get("rigid_layers", ()))
            model.looks.extend(Look.from_values(values) for values in shape.get("looks", ()))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise UserError(
                f"{path}: holds no grids, though config.json beside it says representation 'grid'; "
                "use the config.json that was written with the checkpoint"
            ) from None
        for layer, parameter in enumerate(model.atlases):
            saved = state.get(f"atlases.{layer}")
            if saved is not None and saved.shape != parameter.shape:  # It was saved at a coarser stage of training.
                model.atlases[layer] = nn.Parameter(torch.zeros_like(saved))
        for name in ("mask_logits", "is_kept", "mattes"):
            if name in state:
                setattr(model, name, torch.zeros_like(state[name]))
            else:  # It was saved before masks could be kept, or before mattes were solved.
                state[name] = getattr(model, name)
        # It was saved when all atlases were planes.
        state.setdefault("unrolled_to_texels", model.unrolled_to_texels)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path}: grids do not fit ({str(error).splitlines()[-1].strip()}); train again") from None
        return model


class GridFrames:
    """A model at K frames.

    In training, the nodes of grids with nodes in every frame are leaves of the graph of their own, so that a step
    changes only the nodes of these frames. The mappings of rigid layers are not trained.
    """

    def __init__(self, model: GridModel, t: Tensor, training: bool = False, fields: Collection[str] | None = None):
        """t (K,): frame numbers. fields: names of the only fields that are needed; None: all.

        If t is on a GPU, its values are not read: crops then hold the boxes of all frames of the clip, so that a
        recorded step (`grids.step_graphs`) fits any frames.
        """
        self.model, self.training = model, training
        self.t_on_cpu = t if t.device.type == "cpu" else None
        self.t = t = to_device_async(t, model.transforms.device)
        self.leaves: dict[str, Tensor] = {}  # by name of the field and number of the grid
        self.masks: dict[int, Tensor] = {}  # (K, 1, H, W) logits of kept masks, by object
        self.nodes: dict[str, list[Tensor]] = {}  # (K, C, ny, nx) of each grid of each field
        untrained_fields = {f"mappings.{layer}" for layer in model.rigid_layers} if training else set()
        for name, grids in model.fields_by_name().items():
            if fields is not None and name not in fields:
                continue
            self.nodes[name] = []
            for level, grid in enumerate(grids):
                nodes = grid.values_at(t)
                if name in untrained_fields:
                    nodes = nodes.detach()
                elif training and grid.is_per_frame:
                    nodes = self.leaves[f"{name}.{level}"] = nodes.detach().requires_grad_()
                self.nodes[name].append(nodes)

    def evaluate_field(self, name: str, lattice: Lattice) -> Tensor:
        """Evaluate a field on a lattice, (K, C, h, w)."""
        return lattice.interpolate(*self.nodes[name])

    def sample_field(self, name: str, frames: Tensor, points_px: Tensor) -> Tensor:
        """Evaluate a field at any points (M, 2, N) of M of the K frames, (M, C, N). frames (M,): from 0 to K - 1."""
        size = self.model.shape.size[1:]
        return add_tensors(sample_nodes(nodes[frames], points_px, size) for nodes in self.nodes[name])

    def texels(self, layer: int, lattice: Lattice) -> Tensor:
        """Return the texel (x, y) of a layer's full-sized atlas at each lattice point, (K, 2, h, w)."""
        return self.places(layer, lattice, device_constant(TEXEL_UNITS, self.t.device).view(3, 3))

    def places(self, layer: int, lattice: Lattice, units: Tensor) -> Tensor:
        """Return the place in a layer's atlas of each lattice point, (K, 2, h, w), in any units.

        units (3, 3): from texels to them, a scale and a shift along each axis. They are applied to the transforms and
        to the nodes, which are few, and not to the many results.
        """
        transforms, surface = self.model.transforms[layer, self.t], self.model.surface(layer)
        if surface is None:
            rays = (units @ transforms) @ lattice.points(units.device)
        else:
            rays, surface = transforms @ lattice.points(units.device), units @ surface
        start = meet_surface(rays, surface)[:, :2] if self.model.layers[layer].is_background else rays[:, :2]
        scale = units.diagonal()[:2, None, None]
        return start.unflatten(2, lattice.shape) + lattice.interpolate(
            *(nodes * scale for nodes in self.nodes[f"mappings.{layer}"])
        )

    def map_points(self, layer: int, frames: Tensor, points_px: Tensor) -> Tensor:
        """Return the texels of any points (M, 2, N) of M of the K frames, (M, 2, N). frames (M,): from 0 to K - 1."""
        transforms = self.model.transforms[layer, self.t[frames]]
        rays = transforms[:, :, :2] @ points_px + transforms[:, :, 2:]
        return meet_surface(rays, self.model.surface(layer)) + self.sample_field(f"mappings.{layer}", frames, points_px)

    def logit(self, index: int, lattice: Lattice) -> Tensor:
        """Return the logits of an object's opacity, (K, 1, h, w). They are only meaningful in the object's box."""
        learned = self.evaluate_field(f"alphas.{index}", lattice)
        if not self.model.mask_logits.numel():
            return learned
        is_kept = self.model.is_kept[index, self.t][:, None, None, None]
        return combine_logits(learned, self.lattice_mask_logits(index, lattice), is_kept)

    def lattice_mask_logits(self, index: int, lattice: Lattice) -> Tensor:
        """Return the logits of an object's kept masks on a lattice, (K, 1, h, w)."""
        if lattice.is_on_pixels:  # Nothing lies between pixels, so nothing is interpolated.
            device = self.model.mask_logits.device
            rows, columns = (axis.long() for axis in lattice.axes(device))
            return self.model.mask_logits[index][self.t[:, None, None], rows[:, None], columns][:, None] * LOGIT_STEP
        masks = self.kept_mask_logits(index)
        assert masks is not None
        return lattice.interpolate(masks)

    def sample_logit(self, index: int, frames: Tensor, points_px: Tensor) -> Tensor:
        """Return an object's logits at any points (M, 2, N) of M of the K frames, (M, N). frames (M,): 0 to K - 1."""
        learned = self.sample_field(f"alphas.{index}", frames, points_px)[:, 0]
        masks = self.kept_mask_logits(index)
        if masks is None:
            return learned
        logits = sample_nodes(masks[frames], points_px, self.model.shape.size[1:])[:, 0]
        return combine_logits(learned, logits, self.model.is_kept[index, self.t[frames]][:, None])

    def kept_mask_logits(self, index: int) -> Tensor | None:
        """Return the logits of an object's kept masks, (K, 1, H, W); None if the model keeps no masks."""
        if self.model.mask_logits.numel() == 0:
            return None
        if index not in self.masks:
            self.masks[index] = self.model.mask_logits[index, self.t][:, None] * LOGIT_STEP
        return self.masks[index]

    def alpha(self, index: int, lattice: Lattice) -> Tensor:
        """Return the opacity of an object, (K, 1, h, w); it is zero outside its box.

        It is the learned opacity in training, and the solved one, which has soft outlines, once there is one.
        """
        rows, columns = self.box_slices(index, lattice)
        part = lattice.crop(rows, columns)
        alpha = torch.zeros(len(self.t), 1, *lattice.shape, device=self.t.device)
        if self.training or not self.model.mattes.numel():
            opacity = torch.sigmoid(self.logit(index, part))
        else:
            opacity = part.interpolate(self.model.mattes[index, self.t][:, None] / 255)
        alpha[:, :, rows, columns] = opacity * self.box_mask(index, part)
        return alpha

    def select_frames(self, values: Tensor) -> Tensor:
        """Return the rows of the K frames from a tensor (T, ...) on the CPU; all rows if only the GPU knows which."""
        return values if self.t_on_cpu is None else values[self.t_on_cpu]

    def box_slices(self, index: int, lattice: Lattice) -> tuple[slice, slice]:
        """Return the rows and columns of a lattice that hold the object's boxes in all K frames, at least one each."""
        if lattice.rows_px.device.type != "cpu":
            return slice(0, lattice.shape[0]), slice(0, lattice.shape[1])
        boxes = self.select_frames(self.model.boxes_on_cpu()[index])
        filled = boxes[boxes[:, 1] > boxes[:, 0]]
        low, high = (filled.amin(0), filled.amax(0)) if len(filled) else (boxes[0], boxes[0])
        rows = axis_slice(lattice.rows_px, int(low[0]), int(high[1]))
        columns = axis_slice(lattice.columns_px, int(low[2]), int(high[3]))
        return rows, columns

    def box_mask(self, index: int, lattice: Lattice) -> Tensor:
        """Return 1 inside and 0 outside the object's box of each frame, (K, 1, h, w)."""
        return lattice.box_mask(self.model.boxes[index, self.t])

    def light(self, lattice: Lattice) -> Tensor:
        """Return the factor of the colours, close to 1, (K, 3, h, w). It is interpolated between the nodes."""
        (nodes,) = self.nodes["light"]
        return lattice.interpolate(torch.exp(LARGEST_LOG_LIGHT * torch.tanh(nodes / LARGEST_LOG_LIGHT)))

    def color(self, layer: int, lattice: Lattice) -> Tensor:
        """Return the colour of a layer's atlas at each lattice point, (K, 3, h, w)."""
        units = device_constant(sampling_units(self.model.shape.atlas_sizes[layer]), self.t.device).view(3, 3)
        grid = self.places(layer, lattice, units).permute(0, 2, 3, 1)
        if self.training:  # as one tall image, so that the derivative by the atlas is added up in one place
            tall = functional.grid_sample(
                self.model.atlases[layer], grid.flatten(0, 1)[None], padding_mode="border", align_corners=False
            )
            return tall[0].unflatten(1, (len(self.t), lattice.shape[0])).transpose(0, 1)
        # A batch of atlases, because grid_sample shares the images of a batch among the CPU's cores.
        if len(self.model.looks):
            assert self.t_on_cpu is not None, "only training has frame numbers on a GPU"
            atlas = torch.cat([self.model.atlas_at(t, layer) for t in self.t_on_cpu.tolist()])
        else:
            atlas = self.model.atlases[layer].expand(len(self.t), -1, -1, -1)
        return functional.grid_sample(atlas, grid, padding_mode="border", align_corners=False)


def log_to_light_value(log_light: NDArray) -> NDArray:
    """Return the values at nodes that stand for the logarithm of a factor of light; inverts `GridFrames.light`."""
    return LARGEST_LOG_LIGHT * np.arctanh(log_light / LARGEST_LOG_LIGHT)


def combine_logits(learned: Tensor, mask: Tensor, is_kept: Tensor) -> Tensor:
    """Return the logits of opacity from the learned ones and those of the masks.

    Where a mask is kept, the result is the mask's logit, changed by less than its own size; elsewhere the learned one.
    Strokes are kept like masks, in their pixels.
    """
    softened = mask + LEARNED_FACTOR * mask.abs().clamp(max=LEARNED_LIMIT) * torch.tanh(learned)
    return torch.where(is_kept | (mask.abs() >= LEAST_STROKE_LOGIT), softened, learned)


def node_steps(nodes: int) -> list[float]:
    """Return the positions of nodes along an axis, from 0 for the first to 1 for the last."""
    return [number / (nodes - 1) for number in range(nodes)]


def axis_slice(axis: Tensor, first: float, end: float) -> slice:
    """Return the part of a lattice's axis (on the CPU) within [first, end) pixels, or else the nearest position."""
    inside = torch.nonzero((axis >= first) & (axis < end)).flatten()
    if len(inside) == 0:
        nearest = int((axis - first).abs().argmin())
        return slice(nearest, nearest + 1)
    return slice(int(inside[0]), int(inside[-1]) + 1)
