"""The explicit representation: mappings, opacities, atlases and light as grids. It has the interface `Model`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from command_line import UserError
from config import Levels
from grids.atlases import sample_atlas, sample_shared_square, texels_per_uv
from grids.fields import Grid, Lattice, count_nodes
from grids.frames import GridFrames
from grids.looks import Look, blend_looks
from grids.shape import Shape, Spacing
from grids.surfaces import middle_jacobians
from implicit_neural_networks import Layers, Sample
from media import Pixels, to_8_bit

BOX_MARGIN = 0.15  # Share of an object's extent that its box has around it on each side, so that it can still grow.


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
    # (F, T, H, W) int8: logits of kept masks and of strokes in units of `frames.LOGIT_STEP`, 0 where
    # there are none; (F, 0, 0, 0) if there are none at all
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

        logits (F, T, H, W): int8, in units of `frames.LOGIT_STEP`. is_kept (F, T): bool. In other frames single pixels,
        such as those of strokes, may have logits, which are kept in the same way.
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

    def at_frames(self, *t: int) -> GridFrames:
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


def node_steps(nodes: int) -> list[float]:
    """Return the positions of nodes along an axis, from 0 for the first to 1 for the last."""
    return [number / (nodes - 1) for number in range(nodes)]
