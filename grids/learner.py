"""Training of a grid model: whole frames in pairs of neighbours, from coarse to fine, with the paper's loss terms."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import loss_utils
from command_line import UserError, warn
from config import Config
from grids.corrections import correct_by_strokes
from grids.fields import Lattice, add_tensors, to_device_async
from grids.losses import Photometric, prior_loss, relative_jacobians
from grids.matting import solve_mattes
from grids.model import GridFrames, GridModel, Spacing
from grids.optimizer import RowSparseAdam
from grids.start import LIKELY, average_atlases, reduce_frames, start_model
from grids.surfaces import invert_2x2, surface_jacobians
from implicit_neural_networks import Model, check_object_count, visibility
from masks.refinement import remove_specks
from media import Pixels
from media.flows import BACKWARD, FORWARD
from parallel.side_by_side import Cores, count_cores
from unwrap_utils import Video

STRIDES = (4, 2, 1)  # Pixels of the clip per pixel of training, along each axis, from the first stage to the last.
PHOTOMETRIC_PARTS = ("color", "gradient", "color_unlit", "gradient_unlit")
FLOW_STRIDE_PX = 4  # Spacing of the lattice for rigidity and flow; mappings are smooth, and its offset is random.
COLOR_RANGE = (0.0, 1.0)  # Range in which the colours of atlases are rendered.
SPECK_LOGIT = 12.0  # Amount by which the logit of opacity is lowered where a speck is removed.


@dataclass
class Stage:
    """The frames at the resolution of one stage of training."""

    stride: int
    lattice: Lattice
    frames: Tensor  # (T, 3, h, w) uint8


@dataclass
class Batch:
    """What one step looks at: P pairs of neighbouring frames, the frames of a pair side by side."""

    t: Tensor  # (2 P,) frame numbers, on the CPU
    stage: Stage
    progress: float  # how much of the run is done, 0 to 1
    lattice: Lattice  # for rigidity and flow
    crop: tuple[slice, slice]  # rows and columns of the frames that make up the lattice
    flow_weights: Tensor  # (2 P, N) weight of the flow from each frame to its partner, at the points of the lattice


@dataclass
class PartFrames:
    """Some frames of a batch, and the frames to which their flow leads."""

    own: GridFrames
    positions: list[int]  # of the own frames in the batch, one after the other
    others: GridFrames
    targets: Tensor  # for each own frame the number of its partner among the others


@dataclass
class Part:
    """The terms of some frames of a batch, and their derivatives."""

    terms: dict[str, Tensor]
    # Name of a grid with nodes in every frame, positions of its frames in the batch, derivative by their nodes.
    frames: list[tuple[str, list[int], Tensor | None]]
    shared: dict[str, Tensor | None]  # derivatives by everything else, by name


class GridLearner:
    """A GridModel with its optimizer and its batches; see `training.learner.Learner` for the interface."""

    model: GridModel
    probability: Tensor  # (F, T, ny, nx) of the refined masks, at the nodes of the last grid of opacity

    def __init__(self, config: Config, video: Video, generator: torch.Generator):
        self.video, self.config = video, config
        self.optimizer = RowSparseAdam()
        self.cores = Cores(count_cores() if video.device.type == "cpu" else 1)
        # Frames and offsets are drawn on the CPU, so that the loop never waits for a GPU to know what comes next.
        self.rng = generator if generator.device.type == "cpu" else torch.Generator().manual_seed(config.seed)
        self.pending_pairs: list[int] = []  # first frames of the pairs that are still to come in this round
        self.round = 0
        self.frames_used: float = 0

    def initialize(self, show_start: Callable[[Model, list[Pixels]], None]) -> None:
        """Compute the closed-form start. show_start is called with a first model before the start is complete."""

        def show_preview(model: GridModel) -> None:
            show_start(model, model.atlas_images())

        spacing, stride = Spacing.from_config(self.config), STRIDES[0]
        model, probability = start_model(self.video, spacing, self.config.mask_quality, stride, show_preview)
        self.set_model(model, probability, stride)

    def set_model(self, model: GridModel, probability: Tensor, stride: int) -> None:
        """Set the model to train.

        probability (F, T, ny, nx): the objects' probability at the nodes of the last grid of opacity. stride: reduction
        of the model's atlases.
        """
        self.model, self.probability = model.to(self.video.device), probability.to(self.video.device)
        jacobians = torch.stack([self.model.start_jacobians(layer.index) for layer in self.model.layers])
        self.start_inverse = torch.linalg.inv(jacobians)  # (L, T, 2, 2)
        scales = [self.model.texels_per_pixel(layer) for layer in range(len(jacobians))]
        self.texels_per_pixel = torch.stack(scales)  # (L, T)
        self.is_refined = ~self.model.is_kept.cpu()  # (F, T), on the CPU
        self.stage = self.make_stage(stride)

    # coarse to fine

    def stride_at(self, progress: float) -> int:
        """Return the stride of the stage of training at this progress."""
        if progress < self.config.grid_quarter_until:
            return 4
        return 2 if progress < self.config.grid_half_until else 1

    def pairs_at(self, stride: int) -> int:
        """Return the number of pairs of neighbouring frames in a batch."""
        config = self.config
        return {4: config.grid_quarter_pairs, 2: config.grid_half_pairs, 1: config.grid_full_pairs}[stride]

    def make_stage(self, stride: int) -> Stage:
        """Return the frames at 1 / stride of the resolution."""
        frames = reduce_frames(self.video, stride)
        return Stage(stride, Lattice.of_stride(stride, self.model.shape.size[1:]), frames)

    def set_resolution(self, stride: int) -> Stage:
        """Enter the stage of a stride unless training is at this stage or a finer one. Returns the current stage.

        A new stage removes specks of opacity, so that the layers behind them are learned instead, and averages the
        atlases again from the sharper frames.
        """
        if stride < self.stage.stride:
            self.stage = self.make_stage(stride)
            remove_opacity_specks(self.model, self.opacity(), self.probability)
            average_atlases(self.model, self.stage.frames, self.opacity(), stride)
        return self.stage

    def finish(self) -> None:
        """Bring the atlases to full resolution, even if a run ends early, and clean and soften the opacity."""
        self.set_resolution(STRIDES[-1])
        self.model.forget_mattes()
        remove_opacity_specks(self.model, self.opacity(), self.probability)
        self.model.mattes = solve_mattes(self.model, self.video)

    def apply_strokes(self) -> None:
        """Correct the opacity by the strokes of the video, and average the atlases with the new opacity."""
        probability = correct_by_strokes(self.model, self.probability, self.video)
        self.set_model(self.model, probability, self.stage.stride)
        average_atlases(self.model, self.stage.frames, self.opacity(), self.stage.stride)

    @torch.no_grad()
    def opacity(self) -> Tensor:
        """Return the objects' opacity at the nodes of its last grid, (F, T, ny, nx)."""
        nodes = self.model.last_alpha_grid(0).values.shape
        lattice = Lattice.of_nodes((nodes[2], nodes[3]), self.model.shape.size[1:])
        frames = []
        for t in range(self.model.shape.size[0]):
            grid_frames = self.model.at_frames(t)
            frames.append(torch.cat([grid_frames.alpha(index, lattice)[0] for index in range(len(self.model.alphas))]))
        return torch.stack(frames, dim=1)

    def next_pairs(self, count: int) -> Tensor:
        """Draw up to `count` pairs of neighbouring frames; returns their frame numbers (K,), none of them twice.

        All frames are drawn equally often, but the first and the last half as often.
        """
        total = self.model.shape.size[0]
        chosen: list[int] = []
        # A batch stays within one round, because pairs of the next round may share frames with it.
        while len(chosen) < count and (self.pending_pairs or not chosen):
            if not self.pending_pairs:
                first = self.round % 2 if total > 2 else 0
                starts = torch.arange(first, total - 1, 2)
                self.pending_pairs = starts[torch.randperm(len(starts), generator=self.rng)].tolist()
                self.round += 1
            chosen.append(self.pending_pairs.pop())
        return torch.tensor([t for first in chosen for t in (first, first + 1)])

    # one step

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration; progress is how much of the run is done, 0 to 1. Returns the weighted terms, detached."""
        batch = self.draw_batch(progress)
        self.frames_used += len(batch.t)
        parts = self.cores.map(lambda positions: self.part_gradients(batch, positions), self.divide(batch))
        self.optimizer_step(batch, parts)
        names = [name for name in parts[0].terms if name != "photometric"]
        return {name: add_tensors(part.terms[name] for part in parts) for name in names}

    def draw_batch(self, progress: float) -> "Batch":
        """Draw the frames of the next step, and the lattice for rigidity and flow, which has a random offset."""
        stage = self.set_resolution(self.stride_at(progress))
        t = self.next_pairs(self.pairs_at(stage.stride))
        size, step = self.model.shape.size[1:], FLOW_STRIDE_PX
        first_row, first_column = torch.randint(0, step, (2,), generator=self.rng).tolist()
        crop = slice(first_row, None, step), slice(first_column, None, step)
        rows, columns = (torch.arange(side)[part].float() for side, part in zip(size, crop, strict=True))
        return Batch(t, stage, progress, Lattice(rows, columns, size), crop, self.flow_weights(t, crop))

    def flow_weights(self, t: Tensor, crop: tuple[slice, slice]) -> Tensor:
        """Return the weight of the flow of each frame t (K,) to its partner at the lattice points of a crop, (K, N).

        Only valid flow counts. Forward and backward have means of their own, as published, so the weights of all
        forward flow of a batch add up to one half.
        """
        device = self.video.device
        direction = to_device_async(torch.tensor([FORWARD, BACKWARD]).repeat(len(t) // 2), device)
        valid = self.video.flow_valid[:, :, crop[0], crop[1]][direction, to_device_async(t, device)].flatten(1).float()
        totals = valid.view(-1, 2, valid.shape[1]).sum((0, 2)).clamp(min=1)
        return valid / (2 * totals.repeat(len(t) // 2)[:, None])

    def divide(self, batch: "Batch") -> list[list[int]]:
        """Divide the frames of a batch, by their positions in it, among the cores; a GPU takes all of them at once."""
        count = min(self.cores.count, len(batch.t))
        bounds = [len(batch.t) * part // count for part in range(count + 1)]
        return [list(range(first, end)) for first, end in pairwise(bounds)]

    def part_gradients(self, batch: "Batch", positions: list[int]) -> "Part":
        """Compute the terms of some frames of a batch, and their derivatives by everything that training changes.

        The terms of all parts add up to those of the batch. Nothing of the model is changed, so that threads can do
        this side by side.
        """
        partners = [position ^ 1 for position in positions]  # Pairs are side by side in the batch.
        own = GridFrames(self.model, batch.t[positions], training=True)
        if set(partners) <= set(positions):
            others, targets = own, [positions.index(partner) for partner in partners]
        else:
            others, targets = GridFrames(self.model, batch.t[partners], training=True), list(range(len(partners)))
        frames = PartFrames(own, positions, others, to_device_async(torch.tensor(targets), own.t.device))
        terms = self.frame_terms(frames, batch) | self.motion_terms(frames, batch)
        # The photometric term is the sum of these four already.
        total = add_tensors(value for name, value in terms.items() if name not in PHOTOMETRIC_PARTS)
        leaves = [(name, positions, leaf) for name, leaf in own.leaves.items()]
        if others is not own:
            leaves += [(name, partners, leaf) for name, leaf in others.leaves.items()]
        shared = self.shared_tensors()
        gradients = torch.autograd.grad(total, [leaf for *_, leaf in leaves] + list(shared.values()), allow_unused=True)
        return Part(
            {name: value.detach() for name, value in terms.items()},
            [(name, at, gradient) for (name, at, _), gradient in zip(leaves, gradients, strict=False)],
            dict(zip(shared, gradients[len(leaves) :], strict=True)),
        )

    def shared_tensors(self) -> dict[str, Tensor]:
        """Return everything that training changes and that belongs to no single frame, by name."""
        fields = self.model.named_fields().items()
        grids = {
            f"{name}.{level}": grid.values
            for name, levels in fields
            for level, grid in enumerate(levels)
            if not grid.is_per_frame
        }
        return grids | {f"atlases.{layer}": atlas for layer, atlas in enumerate(self.model.atlases)}

    def frame_terms(self, frames: "PartFrames", batch: "Batch") -> dict[str, Tensor]:
        """Return the weighted terms of whole frames: sparsity, prior, colour, gradient and light."""
        config, lattice, own = self.config, batch.stage.lattice, frames.own
        background = len(self.model.layers) - 1
        pixels = len(batch.t) * lattice.shape[0] * lattice.shape[1]
        sparsity, priors = [], []
        rendered = own.color(background, own.texels(background, lattice))
        for index in reversed(range(background)):
            rows, columns = own.box_slices(index, lattice)
            part = lattice.crop(rows, columns)
            logit, box_mask = own.logit(index, part), own.box_mask(index, part)
            alpha = torch.sigmoid(logit) * box_mask
            color = own.color(index, own.texels(index, part))
            behind = rendered[:, :, rows, columns]
            rendered = rendered.clone()
            rendered[:, :, rows, columns] = behind + alpha * (color - behind)
            hidden_color = ((box_mask - alpha.detach()) * color).square().sum() / pixels
            sparsity.append(config.sparsity_coeff * hidden_color)
            if bool(self.is_refined[index, own.t_on_cpu].any()):
                prior = self.prior_sum(index, own, part, logit, box_mask) / pixels
                priors.append(self.prior_weight(batch.progress) * prior)
        terms = {"sparsity": add_tensors(sparsity), "prior": add_tensors([batch.flow_weights.new_zeros(()), *priors])}
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

    def photometric_terms(self, frames: GridFrames, stage: "Stage", rendered: Tensor) -> dict[str, Tensor]:
        """Compare rendered frames (K, 3, h, w), before light, with the clip. Returns the weighted terms.

        "photometric" is the sum of PHOTOMETRIC_PARTS: colour and gradient with light, and (`unlit_coeff`) without it.
        The parts cannot be differentiated.
        """
        config, terms = self.config, {}
        target = stage.frames[frames.t].contiguous() / 255
        gradient_weight = config.gradient_loss_coeff / stage.stride * config.use_gradient_loss
        weights = config.rgb_coeff, gradient_weight
        photometric = []
        if len(self.model.light):
            terms["light"] = config.light_coeff * add_tensors(nodes.square().mean() for nodes in frames.nodes["light"])
            if config.unlit_coeff:
                total, color, gradient = Photometric.apply(rendered, target, *weights)
                photometric.append(config.unlit_coeff * total)
                terms["color_unlit"] = config.unlit_coeff * config.rgb_coeff * color
                terms["gradient_unlit"] = config.unlit_coeff * gradient_weight * gradient
            rendered = rendered * frames.light(stage.lattice)
        total, color, gradient = Photometric.apply(rendered, target, *weights)
        terms["photometric"] = add_tensors([*photometric, total])
        return terms | {"color": config.rgb_coeff * color, "gradient": gradient_weight * gradient}

    def unhidden_probability(self, index: int, t: Tensor) -> Tensor:
        """Return the probability that no object in front hides this one in frames t (K,), (K, 1, ny, nx)."""
        return (1 - self.probability[:index, t]).prod(0)[:, None]

    def prior_weight(self, progress: float) -> float:
        """Return the weight of the cross-entropy with the refined masks.

        It is `prior_coeff`, or the bootstrapping weight while that is larger. The bootstrapping weight is
        `alpha_bootstrapping_factor` at the start and falls tenfold with each tenth of the run.
        """
        config = self.config
        return max(config.prior_coeff, config.alpha_bootstrapping_factor * 0.1 ** (10 * progress))

    def motion_terms(self, frames: "PartFrames", batch: "Batch") -> dict[str, Tensor]:
        """Return the weighted terms of rigidity and flow, on the sparse lattice of the batch."""
        lattice, own = batch.lattice, frames.own
        share, step = len(own.t) / len(batch.t), FLOW_STRIDE_PX
        texels = [own.texels(layer.index, lattice) for layer in self.model.layers]
        alpha = torch.stack([own.alpha(layer.index, lattice) for layer in self.model.layers.foregrounds])
        terms = {}
        for layer in self.model.layers:
            start_inverse = self.start_inverse_at(layer.index, own.t, lattice)
            columns = relative_jacobians(texels[layer.index], start_inverse, (step, step))
            rigidity = loss_utils.rigidity_of_columns(*columns, dim=1).mean()
            terms[f"rigidity_{layer.name}"] = self.config.rigidity_coeff * share * rigidity
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

    def flow_terms(
        self, frames: "PartFrames", batch: "Batch", texels: list[Tensor], alpha: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted flow terms of mappings (Eq. 11) and opacity (Eq. 12), from each frame to its partner.

        texels: (K, 2, h, w) of each layer on the lattice of the batch. alpha (F, K, 1, h, w): the objects' opacity on
        it.
        """
        config, video, layers, own, others = self.config, self.video, self.model.layers, frames.own, frames.others
        t, targets, (rows, columns) = own.t, frames.targets, batch.crop
        direction = [BACKWARD if position % 2 else FORWARD for position in frames.positions]
        directions = to_device_async(torch.tensor(direction), t.device)
        flow = video.flow_steps[:, :, rows, columns][directions, t]  # cropped before the index makes a copy
        flow = flow * video.flow_unit_px[directions, t][:, None, None, None]
        weights = batch.flow_weights[frames.positions[0] : frames.positions[-1] + 1]
        matches_px = batch.lattice.points(t.device)[:2] + flow.permute(0, 3, 1, 2).flatten(2)
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

    def rate_factor(self, progress: float) -> float:
        """Return the factor of all learning rates: 1 until `grid_decay_from`, then falling to `grid_rate_end`."""
        begin = self.config.grid_decay_from
        return self.config.grid_rate_end ** max(0.0, (progress - begin) / (1 - begin))

    @torch.no_grad()
    def optimizer_step(self, batch: "Batch", parts: list["Part"]) -> None:
        """Let the optimizer change the parameters that the batch used."""
        config, factor = self.config, self.rate_factor(batch.progress)
        rates = {
            "mappings": config.grid_rate_mapping,
            "alphas": config.grid_rate_alpha,
            "light": config.grid_rate_light,
            "atlases": config.grid_rate_atlas,
        }
        rows = to_device_async(batch.t, self.video.device)
        fields = self.model.named_fields()
        for name, gradient in add_frame_gradients(parts, len(rows)).items():
            field, level = name.rsplit(".", 1)
            rate = rates[name.split(".")[0]] * factor
            self.optimizer.step(name, fields[field][int(level)].values, [gradient], rate, rows)
        for name, values in self.shared_tensors().items():
            gradients = [each for part in parts if (each := part.shared[name]) is not None]
            if gradients:
                limits = COLOR_RANGE if name.startswith("atlases.") else None
                rate = rates[name.split(".")[0]] * factor
                self.optimizer.step(name, values, gradients, rate, limits=limits, run=self.cores.map)

    # files

    def checkpoint(self) -> dict[str, Any]:
        """Return the model, and everything else that decides the next step."""
        return self.model.checkpoint() | {
            "grid_probability": (self.probability * 255).round().byte(),
            "grid_optimizer": self.optimizer.state_dict(),
            "grid_stride": self.stage.stride,
            "grid_waiting": list(self.pending_pairs),
            "grid_round": self.round,
            "grid_random_state": self.rng.get_state(),
        }

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take everything that decides the next step from a checkpoint.

        Raises UserError if the checkpoint belongs to another clip, number of objects or representation, or if it has
        no state of the training. Warns if the config's grids differ from the checkpoint's, which are kept.
        """
        model = GridModel.from_checkpoint(checkpoint, path)
        model.check_size(self.video.size)
        check_object_count(path, len(model.alphas), self.config)
        if model.shape.spacing != Spacing.from_config(self.config):
            warn(
                f"{path}: begun with other grid_levels_*, grid_light_px or light than the config has; "
                "the run keeps those that it was begun with"
            )
        try:
            model.forget_mattes()
            self.set_model(model, checkpoint["grid_probability"].float() / 255, int(checkpoint["grid_stride"]))
            self.optimizer.load_state_dict(checkpoint["grid_optimizer"])
            self.pending_pairs, self.round = list(checkpoint["grid_waiting"]), int(checkpoint["grid_round"])
            self.rng.set_state(checkpoint["grid_random_state"].cpu())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{path}: has no usable state of the training; train again") from None


def add_frame_gradients(parts: list[Part], count: int) -> dict[str, Tensor]:
    """Return the derivatives by the nodes of the `count` frames of a batch, (count, C, ny, nx), by name of the grid."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, positions, gradient in part.frames:
            if gradient is None:
                continue
            if name not in total:
                total[name] = gradient.new_zeros(count, *gradient.shape[1:])
            for row, position in enumerate(positions):
                total[name][position] += gradient[row]
    return total


@torch.no_grad()
def remove_opacity_specks(model: GridModel, opacity: Tensor, probability: Tensor) -> None:
    """Remove tiny parts of an object's opacity that are separate from it, such as a ripple or a leaf.

    opacity, probability (F, T, ny, nx): of the objects, at the nodes of the last grid of opacity. Parts that the
    refined masks hold, by their probability, stay.
    """
    likely = (probability > LIKELY).cpu().numpy()
    for index, (frames, likely_frames) in enumerate(zip(opacity.cpu().numpy(), likely, strict=True)):
        cleared = [remove_specks(*frame) for frame in zip(frames, likely_frames, strict=True)]
        is_speck = np.stack(cleared) != frames
        is_speck[model.is_kept[index].cpu().numpy()] = False  # A kept mask holds no specks, whatever it looks like.
        values = model.last_alpha_grid(index).values
        values[:, 0] -= SPECK_LOGIT * torch.from_numpy(is_speck).to(values.device)


def inside_boxes(boxes: Tensor, points_px: Tensor) -> Tensor:
    """Return 1 where points (M, 2, N) are inside the boxes (M, 4) and 0 elsewhere, (M, N)."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    x, y = points_px.unbind(1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).float()
