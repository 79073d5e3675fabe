"""The loss of one step, and its derivatives, computed for parts of a batch side by side."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

import loss_utils
from config import Config, rigidity_weight
from grids.fields import Lattice, add_tensors, to_device_async
from grids.flow_fit import Connections
from grids.frames import GridFrames
from grids.losses import Photometric, prior_loss, relative_jacobians
from grids.model import GridModel
from grids.surfaces import invert_2x2, surface_jacobians
from implicit_neural_networks import visibility
from media.flows import BACKWARD, FORWARD
from unwrap_utils import Video

PHOTOMETRIC_PARTS = ("color", "gradient", "color_unlit", "gradient_unlit")
# Flow over several frames is known to about this many pixels; smaller differences are left to the other terms.
LONG_FLOW_TOLERANCE_PX = 0.5
LONG_FLOW_OUTLIER_PX = 3.0  # Larger differences have less weight, because the flow may have lost the point.
FLOW_STRIDE_PX = 4  # Spacing of the lattice for rigidity and flow; mappings are smooth, and its offset is random.


@dataclass
class Stage:
    """The frames at the resolution of one stage of training."""

    stride: int
    lattice: Lattice
    frames: Tensor  # (T, 3, h, w) uint8


@dataclass
class Batch:
    """What one step looks at: P pairs of neighbouring frames, the frames of a pair side by side."""

    stage: Stage
    t: Tensor  # (2 P,) frame numbers
    rows: Tensor  # (h,) rows of the frames on the lattice for rigidity and flow
    columns: Tensor  # (w,) columns of it
    prior_weight: Tensor  # () weight of the cross-entropy with the refined masks
    rate_factor: Tensor  # () factor of all learning rates
    long_flow: list[Connections]  # for each layer, points that flow connects with frames further away; empty: none

    def make_lattice(self) -> Lattice:
        """Return the lattice for rigidity and flow.

        It is made anew in each step: the weights of nodes that it keeps would be those of the first step in every
        replay of a recorded one.
        """
        return Lattice(self.rows.float(), self.columns.float(), self.stage.lattice.size)

    def own_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the batch itself, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def tensors(self) -> list[Tensor]:
        """Return everything in which the steps of a stage differ."""
        connected = [values for connections in self.long_flow for values in connections.tensors()]
        return [*self.own_tensors().values(), *connected]

    def to(self, device: torch.device) -> "Batch":
        """Return a copy on a device, which the host does not wait for."""
        own = {name: to_device_async(values, device) for name, values in self.own_tensors().items()}
        long_flow = [
            Connections(*(to_device_async(values, device) for values in connections.tensors()))
            for connections in self.long_flow
        ]
        return Batch(self.stage, **own, long_flow=long_flow)


@dataclass
class PartFrames:
    """Some frames of a batch, the frames to which their flow leads, and how much that flow counts."""

    own: GridFrames
    positions: range  # of the own frames in the batch
    others: GridFrames
    targets: Tensor  # for each own frame the number of its partner among the others
    lattice: Lattice  # for rigidity and flow
    flow_weights: Tensor  # (K, N) weight of the flow from each own frame to its partner, at the points of the lattice


@dataclass
class Part:
    """The terms of some frames of a batch, and their derivatives."""

    terms: dict[str, Tensor]
    # Name of a grid with nodes in every frame, positions (K,) of its frames in the batch, derivative by their nodes.
    frames: list[tuple[str, Tensor, Tensor | None]]
    shared: dict[str, Tensor | None]  # derivatives by everything else, by name


class GridLoss:
    """The loss of a GridModel on a video. It changes nothing, so threads may use it at the same time."""

    def __init__(self, config: Config, video: Video, model: GridModel, probability: Tensor):
        """probability (F, T, ny, nx): of the refined masks, at the nodes of the last grid of opacity."""
        self.config, self.video, self.model, self.probability = config, video, model, probability
        jacobians = torch.stack([model.start_jacobians(layer.index) for layer in model.layers])
        self.start_inverse = invert_2x2(jacobians)  # (L, T, 2, 2)
        scales = [model.texels_per_pixel(layer.index) for layer in model.layers]
        self.texels_per_pixel = torch.stack(scales)  # (L, T)
        self.is_refined = ~model.is_kept.cpu()  # (F, T), on the CPU

    def part_gradients(self, batch: Batch, flow_weights: Tensor, positions: range) -> Part:
        """Compute the terms of some frames of a batch, and their derivatives by everything that training changes.

        The terms of all parts add up to those of the batch. Nothing of the model is changed, so that threads can do
        this side by side. flow_weights: see `flow_weights`.
        """
        chosen, device = slice(positions.start, positions.stop), batch.t.device
        numbers = torch.arange(positions.start, positions.stop, device=device)
        partners = numbers ^ 1  # Pairs are side by side in the batch.
        own = GridFrames(self.model, batch.t[chosen], training=True)
        if positions.start % 2 == positions.stop % 2 == 0:
            others, targets = own, partners - positions.start
        else:
            others, targets = GridFrames(self.model, batch.t[partners], training=True), numbers - positions.start
        frames = PartFrames(own, positions, others, targets, batch.make_lattice(), flow_weights[chosen])
        terms = self.frame_terms(frames, batch) | self.motion_terms(frames, batch)
        terms |= self.long_flow_terms(frames, batch)
        # The photometric term is the sum of these four already.
        total = add_tensors(value for name, value in terms.items() if name not in PHOTOMETRIC_PARTS)
        leaves = [(name, numbers, leaf) for name, leaf in own.leaves.items()]
        if others is not own:
            leaves += [(name, partners, leaf) for name, leaf in others.leaves.items()]
        shared = collect_shared_tensors(self.model)
        gradients = torch.autograd.grad(total, [leaf for *_, leaf in leaves] + list(shared.values()), allow_unused=True)
        return Part(
            {name: value.detach() for name, value in terms.items()},
            [(name, at, gradient) for (name, at, _), gradient in zip(leaves, gradients, strict=False)],
            dict(zip(shared, gradients[len(leaves) :], strict=True)),
        )

    def frame_terms(self, frames: PartFrames, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of whole frames: sparsity, prior, colour, gradient and light."""
        config, lattice, own = self.config, batch.stage.lattice, frames.own
        background = len(self.model.layers) - 1
        pixels = len(batch.t) * lattice.shape[0] * lattice.shape[1]
        sparsity, priors = [], []
        rendered = own.color(background, lattice)
        for index in reversed(range(background)):
            rows, columns = own.box_slices(index, lattice)
            part = lattice.crop(rows, columns)
            logit, box_mask = own.logit(index, part), own.box_mask(index, part)
            alpha = torch.sigmoid(logit) * box_mask
            color = own.color(index, part)
            behind = rendered[:, :, rows, columns].clone()
            rendered[:, :, rows, columns] = torch.lerp(behind, color, alpha)
            # Only inside the frame's own box, so that it does not matter which frames share a part.
            hidden_color = ((box_mask - alpha.detach()) * color).square().sum() / pixels
            sparsity.append(config.sparsity_coeff * hidden_color)
            if bool(own.select_frames(self.is_refined[index]).any()):
                priors.append(batch.prior_weight * self.prior_sum(index, own, part, logit, box_mask) / pixels)
        terms = {"sparsity": add_tensors(sparsity), "prior": add_tensors([rendered.new_zeros(()), *priors])}
        photometric = self.photometric_terms(own, batch.stage, rendered)
        share = len(own.t) / len(batch.t)
        return terms | {name: share * value for name, value in photometric.items()}

    def prior_sum(self, index: int, own: GridFrames, part: Lattice, logit: Tensor, box_mask: Tensor) -> Tensor:
        """Return the summed cross-entropy of an object's opacity with its refined masks on a part of the lattice.

        Kept masks need no prior, because opacity follows them anyway. logit, box_mask: (K, 1, h, w).
        """
        expected = part.interpolate(self.probability[index, own.t][:, None])
        # Masks do not show what an object in front hides.
        weight = box_mask * part.interpolate(self.unhidden_probability(index, own.t)) if index else box_mask
        is_refined = ~self.model.is_kept[index, own.t]
        return (prior_loss(logit, expected) * weight * is_refined[:, None, None, None]).sum()

    def photometric_terms(self, frames: GridFrames, stage: Stage, rendered: Tensor) -> dict[str, Tensor]:
        """Compare rendered frames (K, 3, h, w), before light, with the clip. Returns the weighted terms.

        "photometric" is the sum of PHOTOMETRIC_PARTS: colour and gradient with light, and (`unlit_coeff`) without it.
        The parts cannot be differentiated.
        """
        config, terms, light = self.config, {}, None
        gradient_weight = config.gradient_loss_coeff / stage.stride * config.use_gradient_loss
        if len(self.model.light):
            terms["light"] = config.light_coeff * add_tensors(
                nodes.square().mean() for nodes in frames.field_nodes("light")
            )
            light = frames.light(stage.lattice)
        weights = config.rgb_coeff, gradient_weight
        total, parts = Photometric.apply(rendered, light, stage.frames[frames.t], weights, config.unlit_coeff)
        count = len(PHOTOMETRIC_PARTS) if light is not None and config.unlit_coeff else 2
        return terms | {"photometric": total} | dict(zip(PHOTOMETRIC_PARTS[:count], parts, strict=False))

    def unhidden_probability(self, index: int, t: Tensor) -> Tensor:
        """Return the probability that no object in front hides this one in frames t (K,), (K, 1, ny, nx)."""
        return (1 - self.probability[:index, t]).prod(0)[:, None]

    def motion_terms(self, frames: PartFrames, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of rigidity and flow, on the sparse lattice of the batch."""
        lattice, own = frames.lattice, frames.own
        share, step = len(own.t) / len(batch.t), FLOW_STRIDE_PX
        texels = [own.texels(layer.index, lattice) for layer in self.model.layers]
        alpha = torch.stack([own.alpha(layer.index, lattice) for layer in self.model.layers.foregrounds])
        terms = {}
        for layer in self.model.layers:
            start_inverse = self.start_inverse_at(layer.index, own.t, lattice)
            columns = relative_jacobians(texels[layer.index], start_inverse, (step, step))
            rigidity = loss_utils.rigidity_of_columns(*columns, dim=1).mean()
            terms[f"rigidity_{layer.name}"] = rigidity_weight(self.config, layer.index) * share * rigidity
        return terms | self.flow_terms(frames, batch, texels, alpha)

    def start_inverse_at(self, layer: int, t: Tensor, lattice: Lattice) -> Tensor:
        """Return the inverse derivative of a layer's start for `relative_jacobians`, in frames t (K,).

        A plane's is that of the middle of the frame. A cylinder's changes too much from pixel to pixel.
        """
        if (surface := self.model.surface(layer)) is None:
            return self.start_inverse[layer, t][:, None, None]
        points = lattice.crop(slice(1, None), slice(1, None)).points(t.device)[:2]
        inverse = invert_2x2(surface_jacobians(self.model.transforms[layer, t], points, surface))
        return inverse.unflatten(1, (lattice.shape[0] - 1, lattice.shape[1] - 1))

    def flow_weights(self, batch: Batch) -> Tensor:
        """Return the weight of the flow of each frame of a batch to its partner at the points of the lattice, (2 P, N).

        Only valid flow counts. Forward and backward have means of their own, as published, so the weights of all
        forward flow of a batch add up to one half.
        """
        valid = crop_flow(self.video.flow_valid, range(len(batch.t)), batch.t, batch).flatten(1).float()
        totals = valid.view(-1, 2, valid.shape[1]).sum((0, 2)).clamp(min=1)
        return valid / (2 * totals.repeat(len(batch.t) // 2)[:, None])

    def flow_terms(self, frames: PartFrames, batch: Batch, texels: list[Tensor], alpha: Tensor) -> dict[str, Tensor]:
        """Return the weighted flow terms of mappings (Eq. 11) and opacity (Eq. 12), from each frame to its partner.

        texels: (K, 2, h, w) of each layer on the lattice of the batch. alpha (F, K, 1, h, w): the objects' opacity on
        it.
        """
        config, video, layers, own, others = self.config, self.video, self.model.layers, frames.own, frames.others
        t, targets, weights = own.t, frames.targets, frames.flow_weights
        units_px = video.flow_unit_px[flow_directions(frames.positions, t.device), t]
        flow = crop_flow(video.flow_steps, frames.positions, t, batch) * units_px[:, None, None, None]
        matches_px = frames.lattice.points(t.device)[:2] + flow.permute(0, 3, 1, 2).flatten(2)
        layer_visibility = visibility(alpha.flatten(0, 1).view(len(layers) - 1, -1, 1)).view(len(layers), len(t), -1)
        terms = {}
        for layer in layers:
            target_texels = others.map_points(layer.index, targets, matches_px)
            start, end = texels[layer.index].flatten(2).transpose(1, 2), target_texels.transpose(1, 2)
            distance_px = loss_utils.flow_loss(start, end, 1.0) / self.texels_per_pixel[layer.index, t][:, None]
            total = (layer_visibility[layer.index] * distance_px * weights).sum()
            terms[f"flow_{layer.name}"] = config.optical_flow_coeff * total
        changes = []
        for layer in layers.foregrounds:
            target_alpha = torch.sigmoid(others.sample_logit(layer.index, targets, matches_px))
            target_alpha = target_alpha * inside_boxes(self.model.boxes[layer.index, others.t[targets]], matches_px)
            changes.append((target_alpha - alpha[layer.index].flatten(1)).abs())
        terms["flow_alpha"] = config.alpha_flow_factor * (add_tensors(changes) * weights).sum()
        return terms

    def long_flow_terms(self, frames: PartFrames, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of flow over several frames, from each frame to one further away.

        They are flow terms of the mappings (Eq. 11) that do not count small differences, and count large ones less.
        Nodes that only the other frame has are held fixed here: each connection is also there in the other direction,
        so they move in a step that draws their frame. All points are on the layer by the refined masks, so the learned
        opacity does not weigh them.
        """
        terms: dict[str, Tensor] = {}
        if not batch.long_flow:
            return terms
        for layer, connections in zip(self.model.layers, batch.long_flow, strict=True):
            pairs = connections.part(slice(frames.positions.start, frames.positions.stop))
            others = GridFrames(self.model, pairs.target, training=True)
            index, weight = torch.arange(len(pairs.target), device=pairs.target.device), pairs.weight
            start = frames.own.map_points(layer.index, index, pairs.start_px).transpose(1, 2)
            end = others.map_points(layer.index, index, pairs.end_px).transpose(1, 2)
            distance_px = loss_utils.flow_loss(start, end, 1.0) / self.texels_per_pixel[layer.index, frames.own.t, None]
            trust = 1 / (1 + (distance_px.detach() / LONG_FLOW_OUTLIER_PX).square())
            total = ((distance_px - LONG_FLOW_TOLERANCE_PX).clamp(min=0) * trust * weight).sum()
            count = len(batch.t) * weight.shape[1]  # Frames without points count in the mean.
            terms[f"long_flow_{layer.name}"] = self.config.long_flow_coeff * total / count
        return terms


def flow_directions(positions: range, device: torch.device) -> Tensor:
    """Return the direction of the flow from each of some frames of a batch to its partner, (K,)."""
    is_second = torch.arange(positions.start, positions.stop, device=device) % 2
    return torch.where(is_second > 0, BACKWARD, FORWARD)


def crop_flow(values: Tensor, positions: range, t: Tensor, batch: Batch) -> Tensor:
    """Return values of the flow from some frames of a batch to their partners, at the points of its lattice.

    values (2, T, H, W, ...): of the whole clip in both directions. positions, t (K,): of the frames. Returns
    (K, h, w, ...).
    """
    directions = flow_directions(positions, t.device)[:, None, None]
    return values[directions, t[:, None, None], batch.rows[:, None], batch.columns]


def collect_shared_tensors(model: GridModel) -> dict[str, Tensor]:
    """Return everything that training changes and that belongs to no single frame, by name."""
    grids = {
        f"{name}.{level}": grid.values
        for name, levels in model.fields_by_name().items()
        for level, grid in enumerate(levels)
        if not grid.is_per_frame
    }
    return grids | {f"atlases.{layer}": atlas for layer, atlas in enumerate(model.atlases)}


def add_frame_gradients(parts: list[Part], count: int) -> dict[str, Tensor]:
    """Return the derivatives by the nodes of the `count` frames of a batch, (count, C, ny, nx), by name of the grid."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, positions, gradient in part.frames:
            if gradient is None:
                continue
            if name not in total:
                total[name] = gradient.new_zeros(count, *gradient.shape[1:])
            total[name].index_add_(0, positions, gradient)
    return total


def inside_boxes(boxes: Tensor, points_px: Tensor) -> Tensor:
    """Return 1 where points (M, 2, N) are inside the boxes (M, 4) and 0 elsewhere, (M, N)."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    x, y = points_px.unbind(1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).float()
