"""Training a grid model: whole frames in pairs of neighbours, coarse to fine, the paper's terms."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import loss_utils
from command_line import UserError, warn
from config import Config
from grids.fields import Lattice
from grids.losses import Photometric, prior_loss, relative_jacobians
from grids.model import GridFrames, GridModel, Spacing, grid_groups, start_jacobians
from grids.optimizer import RowSparseAdam
from grids.start import LIKELY, average_atlases, reduce_frames, start_model
from implicit_neural_networks import Model, check_object_count, visibility
from masks.refinement import remove_specks
from media import Pixels
from media.flows import BACKWARD, FORWARD
from unwrap_utils import Video

STRIDES = (4, 2, 1)
FLOW_STRIDE_PX = 4  # mappings are smooth: their terms are evaluated on a sparser lattice, shifted at random
SPECK_LOGIT = 12.0  # by which the logarithm of the odds falls where a speck goes


@dataclass
class Stage:
    """Frames at one resolution."""

    stride: int
    lattice: Lattice
    frames: Tensor  # (T, 3, h, w) uint8


class GridLearner:
    """A GridModel, its optimizer and its batches; `begin` or `restore` come before the first step."""

    def __init__(self, config: Config, video: Video, generator: torch.Generator):
        self.video, self.config = video, config
        self.optimizer = RowSparseAdam()
        # Frames and shifts are drawn on the CPU: the loop never waits for a GPU to say what comes next.
        self.rng = generator if generator.device.type == "cpu" else torch.Generator().manual_seed(config.seed)
        self.pending_pairs: list[int] = []  # first frames of the pairs still to come in this round
        self.round = 0
        self.frames_used = 0

    def initialize(self, show_start: Callable[[Model, list[Pixels]], None]) -> None:
        """Compute the closed-form start. show_start gets a first model while the rest of the start goes on."""
        spacing, quality = Spacing.from_config(self.config), self.config.mask_quality

        def show(model: GridModel) -> None:
            show_start(model, model.atlas_images())

        self.set_model(*start_model(self.video, spacing, quality, STRIDES[0], show), STRIDES[0])

    def set_model(self, model: GridModel, probability: Tensor, stride: int) -> None:
        """Train this model, whose atlases are reduced by `stride`.

        Its objects have these probabilities (F, T, ny, nx) at the nodes of their opacity.
        """
        self.model, self.probability = model.to(self.video.device), probability.to(self.video.device)
        slopes = torch.stack([start_jacobians(each, model.shape.size) for each in self.model.transforms])
        self.start_inverse = torch.linalg.inv(slopes)
        self.scale = torch.stack([self.model.pixel_scale(layer) for layer in range(len(slopes))])  # (L, T)
        self.stage = self.make_stage(stride)

    # coarse to fine

    def stride_at(self, share: float) -> int:
        if share < self.config.grid_quarter_until:
            return 4
        return 2 if share < self.config.grid_half_until else 1

    def pairs_at(self, stride: int) -> int:
        """Pairs of neighbouring frames in a batch."""
        config = self.config
        return {4: config.grid_quarter_pairs, 2: config.grid_half_pairs, 1: config.grid_full_pairs}[stride]

    def make_stage(self, stride: int) -> Stage:
        """The frames at 1 / stride of the resolution."""
        frames = reduce_frames(self.video, stride)
        return Stage(stride, Lattice.of_stride(stride, self.model.shape.size[1:]), frames)

    def set_resolution(self, stride: int) -> Stage:
        """The stage of a stride; on entering it the atlases are averaged anew, from sharper frames. Never back.

        Specks of opacity go first, so that what is behind them is learned instead.
        """
        if stride < self.stage.stride:
            self.stage = self.make_stage(stride)
            remove_opacity_specks(self.model, self.opacity(), self.probability)
            average_atlases(self.model, self.stage.frames, self.opacity(), stride)
        return self.stage

    def finish(self) -> None:
        """A run that ends early gets atlases of the full resolution all the same; specks of opacity go."""
        self.set_resolution(STRIDES[-1])
        remove_opacity_specks(self.model, self.opacity(), self.probability)

    @torch.no_grad()
    def opacity(self) -> Tensor:
        """(F, T, ny, nx) the objects' opacity at the nodes of its finest grid."""
        nodes = self.model.alphas[0][-1].values.shape[2:]
        lattice, frames = Lattice.of_nodes(nodes, self.model.shape.size[1:]), []
        for t in range(self.model.shape.size[0]):
            view = self.model.at_frames(t)
            frames.append(torch.cat([view.alpha(index, lattice)[0] for index in range(len(self.model.alphas))]))
        return torch.stack(frames, dim=1)

    def next_pairs(self, count: int) -> Tensor:
        """Up to 2 * count frames (K,): pairs of neighbours, none twice, all but the ends equally often."""
        total = self.model.shape.size[0]
        chosen: list[int] = []
        while len(chosen) < count and (
            self.pending_pairs or not chosen
        ):  # another round's pairs may share frames with these
            if not self.pending_pairs:
                first = self.round % 2 if total > 2 else 0
                starts = torch.arange(first, total - 1, 2)
                self.pending_pairs = starts[torch.randperm(len(starts), generator=self.rng)].tolist()
                self.round += 1
            chosen.append(self.pending_pairs.pop())
        return torch.tensor([t for first in chosen for t in (first, first + 1)])

    # one step

    def step(self, iteration: int, share: float) -> dict[str, Tensor]:
        """One iteration, at a share of the run (0 to 1); returns the weighted terms."""
        stage = self.set_resolution(self.stride_at(share))
        t = self.next_pairs(self.pairs_at(stage.stride))
        self.frames_used += len(t)
        view = GridFrames(self.model, t, training=True)
        terms = self.picture_terms(view, stage, share) | self.motion_terms(view)
        total = sum(value for name, value in terms.items() if name not in ("color", "gradient"))
        total.backward()
        self.optimizer_step(view, share)
        terms.pop("photometric")
        return {name: value.detach() for name, value in terms.items()}

    def picture_terms(self, view: GridFrames, stage: Stage, share: float) -> dict[str, Tensor]:
        """Terms that compare whole pictures."""
        config, model, terms = self.config, self.model, {}
        target = stage.frames[view.t].contiguous() / 255
        background = len(model.layers) - 1
        rendered = view.color(background, view.texels(background, stage.lattice))
        for index in reversed(range(background)):
            rows, columns = view.box(index, stage.lattice)
            part = stage.lattice.crop(rows, columns)
            logit, inside = view.logit(index, part), view.box_mask(index, part)
            alpha = torch.sigmoid(logit) * inside
            color = view.color(index, view.texels(index, part))
            behind = rendered[:, :, rows, columns]
            rendered = rendered.clone()
            rendered[:, :, rows, columns] = behind + alpha * (color - behind)
            pixels = len(view.t) * stage.lattice.shape[0] * stage.lattice.shape[1]
            sparse = ((1 - alpha.detach()) * color).square().sum() / pixels
            terms["sparsity"] = terms.get("sparsity", 0) + config.sparsity_coeff * sparse
            expected = part.interpolate(self.probability[index, view.t][:, None])
            known = inside * part.interpolate(self.visible_probability(index, view.t)) if index else inside
            prior = (prior_loss(logit, expected) * known).sum() / pixels
            terms["prior"] = terms.get("prior", 0) + self.prior_weight(share) * prior
        gradient_weight = config.gradient_loss_coeff / stage.stride * config.use_gradient_loss
        weights = config.rgb_coeff, gradient_weight
        terms["photometric"] = 0
        if model.light:
            terms["light"] = config.light_coeff * sum(nodes.square().mean() for nodes in view.nodes["light"])
            if config.unlit_coeff:
                terms["photometric"] = config.unlit_coeff * Photometric.apply(rendered, target, *weights)[0]
            rendered = rendered * view.light(stage.lattice)
        total, color, gradient = Photometric.apply(rendered, target, *weights)
        terms["photometric"] = terms["photometric"] + total
        terms["color"], terms["gradient"] = config.rgb_coeff * color, gradient_weight * gradient
        return terms

    def visible_probability(self, index: int, t: Tensor) -> Tensor:
        """(K, 1, ny, nx): how likely no object in front hides this one; masks say nothing of what is hidden."""
        return (1 - self.probability[:index, t]).prod(0)[:, None]

    def prior_weight(self, share: float) -> float:
        """Of the cross-entropy with the evidence: `prior_coeff`, or the bootstrapping factor while that is larger.

        The latter fades tenfold with each tenth of the run; as configs have it by default it never is larger.
        """
        config = self.config
        return max(config.prior_coeff, config.alpha_bootstrapping_factor * 0.1 ** (10 * share))

    def motion_terms(self, view: GridFrames) -> dict[str, Tensor]:
        """Rigidity and flow, on a sparse lattice shifted at random."""
        config, model = self.config, self.model
        size, step, device = model.shape.size[1:], FLOW_STRIDE_PX, view.t.device
        shift = torch.randint(0, step, (2,), generator=self.rng).tolist()
        rows, columns = (slice(first, None, step) for first in shift)
        lattice = Lattice(
            *(torch.arange(side)[pick].float() for side, pick in zip(size, (rows, columns), strict=True)), size
        )
        names = [layer.name for layer in model.layers]
        texels = [view.texels(layer, lattice) for layer in range(len(names))]
        alpha = torch.stack([view.alpha(index, lattice) for index in range(len(names) - 1)])
        terms = {}
        for layer, name in enumerate(names):
            jacobians = relative_jacobians(texels[layer], self.start_inverse[layer, view.t], (step, step))
            terms[f"rigidity_{name}"] = config.rigidity_coeff * loss_utils.rigidity_loss(jacobians).mean()

        first = torch.arange(0, len(view.t), 2, device=device)
        source, target = torch.cat((first, first + 1)), torch.cat((first + 1, first))
        direction = torch.cat((torch.full_like(first, FORWARD), torch.full_like(first, BACKWARD)))
        t = view.t[source]
        flow = self.video.flow_steps[:, :, rows, columns][direction, t]  # thinned before it is copied
        flow = flow * self.video.flow_unit_px[direction, t][:, None, None, None]
        valid = self.video.flow_valid[:, :, rows, columns][direction, t].flatten(1).float()
        ends = lattice.points(device)[:2] + flow.permute(0, 3, 1, 2).flatten(2)
        here = visibility(alpha[:, source].flatten(0, 1).view(len(names) - 1, -1, 1)).view(len(names), len(source), -1)
        for layer, name in enumerate(names):
            there = view.map_points(layer, target, ends)
            away = loss_utils.flow_loss(texels[layer][source].flatten(2).transpose(1, 2), there.transpose(1, 2), 1.0)
            away = away / self.scale[layer, t][:, None]
            # Forward and backward are means of their own, as published.
            means = loss_utils.masked_mean((here[layer] * away).view(2, -1), valid.view(2, -1))
            terms[f"flow_{name}"] = config.optical_flow_coeff * means.mean()
        change = 0
        for index in range(len(names) - 1):
            there = torch.sigmoid(view.sample_field(f"alphas.{index}", target, ends)[:, 0])
            there = there * inside_boxes(model.boxes[index, view.t[target]], ends)
            change = change + (there - alpha[index, source].flatten(1)).abs()
        terms["flow_alpha"] = (
            config.alpha_flow_factor * loss_utils.masked_mean(change.view(2, -1), valid.view(2, -1)).mean()
        )
        return terms

    def rate_factor(self, share: float) -> float:
        """What is left of the learning rates at a share of the run."""
        begin = self.config.grid_decay_from
        return self.config.grid_rate_end ** max(0.0, (share - begin) / (1 - begin))

    def optimizer_step(self, view: GridFrames, share: float) -> None:
        """Let the optimizer move what the batch used."""
        config, fallen = self.config, self.rate_factor(share)
        rates = {
            "mappings": config.grid_rate_mapping,
            "alphas": config.grid_rate_alpha,
            "light": config.grid_rate_light,
        }
        for name, group in grid_groups(self.model).items():
            rate = rates[name.split(".")[0]] * fallen
            for level, grid in enumerate(group):
                leaf = view.leaves.get(f"{name}.{level}")
                if leaf is not None and leaf.grad is not None:
                    self.optimizer.step(f"{name}.{level}", grid.values, leaf.grad, rate, view.t)
                elif leaf is None and grid.values.grad is not None:
                    self.optimizer.step(f"{name}.{level}", grid.values, grid.values.grad, rate)
                    grid.values.grad = None
        for layer, atlas in enumerate(self.model.atlases):
            if atlas.grad is not None:
                self.optimizer.step(f"atlases.{layer}", atlas, atlas.grad, config.grid_rate_atlas * fallen)
                atlas.grad = None
                atlas.data.clamp_(0, 1)  # as they are rendered

    # files

    def checkpoint(self) -> dict[str, Any]:
        """The model, and everything else that decides the next step."""
        return self.model.checkpoint() | {
            "grid_probability": (self.probability * 255).round().byte(),
            "grid_optimizer": self.optimizer.state_dict(),
            "grid_stride": self.stage.stride,
            "grid_waiting": list(self.pending_pairs),
            "grid_round": self.round,
            "grid_random_state": self.rng.get_state(),
        }

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take everything that decides the next step from a checkpoint. Raises UserError."""
        model = GridModel.from_checkpoint(checkpoint, path)
        model.check_size(self.video.size)
        check_object_count(path, len(model.alphas), self.config)
        if model.shape.spacing != Spacing.from_config(self.config):
            warn(f"{path}: begun with other grid_levels_*, grid_light_px or light than in the config; these stay")
        try:
            self.set_model(model, checkpoint["grid_probability"].float() / 255, int(checkpoint["grid_stride"]))
            self.optimizer.load_state_dict(checkpoint["grid_optimizer"])
            self.pending_pairs, self.round = list(checkpoint["grid_waiting"]), int(checkpoint["grid_round"])
            self.rng.set_state(checkpoint["grid_random_state"].cpu())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{path}: has no usable state of the training; train again") from None


@torch.no_grad()
def remove_opacity_specks(model: GridModel, opacity: Tensor, probability: Tensor) -> None:
    """Take away what lies apart from an object and is tiny against it: opacity spent on a ripple or a leaf.

    opacity, probability (F, T, ny, nx) of the objects at the nodes of its finest grid; what is probable stays.
    """
    likely = (probability > LIKELY).cpu().numpy()
    for group, frames, kept in zip(model.alphas, opacity.cpu().numpy(), likely, strict=True):
        gone = np.stack([remove_specks(*each) != each[0] for each in zip(frames, kept, strict=True)])
        group[-1].values[:, 0] -= SPECK_LOGIT * torch.from_numpy(gone).to(group[-1].values.device)


def inside_boxes(boxes: Tensor, points_px: Tensor) -> Tensor:
    """(M, N) 1 where points (M, 2, N) lie in the boxes (M, 4), else 0."""
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    x, y = points_px.unbind(1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).float()
