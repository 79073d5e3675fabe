"""A grid model at some frames: its fields evaluated on lattices and at points, with the opacity of kept masks."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from grids.atlases import sampling_units
from grids.fields import Grid, Lattice, add_tensors, axis_slice, device_constant, sample_nodes, to_device_async
from grids.shape import Shape
from grids.surfaces import meet_surface
from implicit_neural_networks import Layers

LOGIT_STEP = 1 / 16  # Unit in which the logits of kept masks are stored as 8-bit integers.
# Where a mask is kept, training changes its logit by at most LEARNED_FACTOR times its absolute value, which counts up
# to LEARNED_LIMIT. So the sign never changes: a pixel that is more than half opaque in the mask stays so.
LEARNED_FACTOR, LEARNED_LIMIT = 0.9, 1.5
LEAST_STROKE_LOGIT = 3.5  # Logit of a mask, up to its sign, from which on it is kept in every frame.
TEXEL_UNITS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)  # the 3 x 3 matrix that leaves texels as they are
LARGEST_LOG_LIGHT = 0.7  # Natural logarithm of the strongest light; its negative is that of the darkest shadow.


class FieldSource(Protocol):
    """What `GridFrames` needs of a `grids.model.GridModel`, where each of these is described."""

    shape: Shape
    layers: Layers
    transforms: Tensor
    boxes: Tensor
    mask_logits: Tensor
    is_kept: Tensor
    mattes: Tensor
    atlases: nn.ParameterList
    light: nn.ModuleList
    looks: Any
    rigid_layers: frozenset[int]

    def fields_by_name(self) -> dict[str, list[Grid]]: ...
    def surface(self, layer: int) -> Tensor | None: ...
    def boxes_on_cpu(self) -> Tensor: ...
    def atlas_at(self, t: int, layer: int) -> Tensor: ...


class GridFrames:
    """A model at K frames. The nodes of a field are interpolated along time when they are first needed.

    In training, the nodes of grids with nodes in every frame are leaves of the graph of their own, so that a step
    changes only the nodes of these frames. The mappings of rigid layers are not trained.
    """

    def __init__(self, model: FieldSource, t: Tensor, training: bool = False):
        """t (K,): frame numbers.

        If t is on a GPU, its values are not read: crops then hold the boxes of all frames of the clip, so that a
        recorded step (`grids.step_graphs`) fits any frames.
        """
        self.model, self.training = model, training
        self.t_on_cpu = t if t.device.type == "cpu" else None
        self.t = t = to_device_async(t, model.transforms.device)
        self.leaves: dict[str, Tensor] = {}  # by name of the field and number of the grid
        self.masks: dict[int, Tensor] = {}  # (K, 1, H, W) logits of kept masks, by object
        self.nodes: dict[str, list[Tensor]] = {}  # results of `field_nodes`

    def field_nodes(self, name: str) -> list[Tensor]:
        """Return the values at the nodes of all grids of a field, (K, C, ny, nx) each."""
        if name not in self.nodes:
            is_untrained = self.training and name in {f"mappings.{layer}" for layer in self.model.rigid_layers}
            found = []
            for level, grid in enumerate(self.model.fields_by_name()[name]):
                nodes = grid.values_at(self.t)
                if is_untrained:
                    nodes = nodes.detach()
                elif self.training and grid.is_per_frame:
                    nodes = self.leaves[f"{name}.{level}"] = nodes.detach().requires_grad_()
                found.append(nodes)
            self.nodes[name] = found
        return self.nodes[name]

    def evaluate_field(self, name: str, lattice: Lattice) -> Tensor:
        """Evaluate a field on a lattice, (K, C, h, w)."""
        return lattice.interpolate(*self.field_nodes(name))

    def sample_field(self, name: str, frames: Tensor, points_px: Tensor) -> Tensor:
        """Evaluate a field at any points (M, 2, N) of M of the K frames, (M, C, N). frames (M,): from 0 to K - 1."""
        size = self.model.shape.size[1:]
        return add_tensors(sample_nodes(nodes[frames], points_px, size) for nodes in self.field_nodes(name))

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
            *(nodes * scale for nodes in self.field_nodes(f"mappings.{layer}"))
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
        (nodes,) = self.field_nodes("light")
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
