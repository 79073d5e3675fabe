"""Training of a grid model: whole frames in pairs of neighbours, from coarse to fine, with the paper's loss terms."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alignment.pins import Pin
from command_line import UserError, warn
from config import Config, rigidity_factor
from grids.corrections import correct_by_strokes
from grids.fields import Lattice, add_tensors
from grids.long_flow import LongFlow, follow_layers
from grids.look_fit import choose_timed_frames, estimate_seconds, fit_looks
from grids.loss import FLOW_STRIDE_PX, Batch, GridLoss, Part, Stage, add_frame_gradients, collect_shared_tensors
from grids.matting import solve_mattes
from grids.model import GridModel
from grids.optimizer import RowSparseAdam, StepRule
from grids.pins import fit_to_pins
from grids.shape import Spacing
from grids.start import average_atlases, reduce_frames, start_model
from grids.step_graphs import StepGraphs
from grids.stiffness import change_stiffness
from grids.visible import LIKELY
from implicit_neural_networks import Model, check_object_count
from masks.refinement import remove_specks
from media import Pixels
from parallel.side_by_side import Cores, count_cores, map_side_by_side
from unwrap_utils import Video

STRIDES = (4, 2, 1)  # Pixels of the clip per pixel of training, along each axis, from the first stage to the last.
COLOR_RANGE = (0.0, 1.0)  # Range in which the colours of atlases are rendered.
# Floor of the gradients of displacements, see `StepRule`. Only rigidity knows those of what objects hide, and
# without a floor they drift.
MAPPING_FLOOR = 0.3
SPECK_LOGIT = 12.0  # Amount by which the logit of opacity is lowered where a speck is removed.


class GridLearner:
    """A GridModel with its optimizer and its batches; see `training.learner.Learner` for the interface."""

    model: GridModel
    probability: Tensor  # (F, T, ny, nx) of the refined masks, at the nodes of the last grid of opacity
    long_flow: list[LongFlow] | None  # of each layer; empty if it does not count; None before the first step

    def __init__(self, config: Config, video: Video, generator: torch.Generator):
        self.video, self.config = video, config
        self.optimizer = RowSparseAdam()
        self.cores = Cores(count_cores() if video.device.type == "cpu" else 1)
        # Frames and offsets are drawn on the CPU, so that the loop never waits for a GPU to know what comes next.
        self.rng = generator if generator.device.type == "cpu" else torch.Generator().manual_seed(config.seed)
        self.pending_pairs: list[int] = []  # first frames of the pairs that are still to come in this round
        self.round = 0
        self.frame_count, self.frames_used = video.size[0], 0.0
        self.parts_done, self.is_whole = 0, True
        self.estimated_seconds: float | None = None  # see `seconds_to_finish`
        self.graphs = StepGraphs(video.device, config.cuda_graphs)
        self.pins: list[Pin] = []  # that the user has set for this run

    def initialize(self, show_start: Callable[[Model, list[Pixels]], None], _folder: Path) -> None:
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
        # A layer that the user makes softer may bend.
        model.rigid_layers -= {layer.index for layer in model.layers if rigidity_factor(self.config, layer.index) < 1}
        self.long_flow = None
        self.loss = GridLoss(self.config, self.video, self.model, self.probability)
        self.stage = self.make_stage(stride)
        self.graphs.forget()

    @property
    def seconds_to_finish(self) -> float:
        """About how many seconds outlines and looks take, most of `finish`; measured when it is first asked for."""
        if self.estimated_seconds is None:
            timed, begin = choose_timed_frames(self.video), time.perf_counter()
            solve_mattes(self.model, self.video, timed)
            mattes_s = (time.perf_counter() - begin) * len(self.video.frames) / len(timed)
            looks_s = estimate_seconds(self.model, self.video, self.config.look_frames)
            self.estimated_seconds = mattes_s + looks_s
        return self.estimated_seconds

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
            self.graphs.forget()
            self.stage = self.make_stage(stride)
            remove_opacity_specks(self.model, self.opacity(), self.probability)
            average_atlases(self.model, self.stage.frames, self.opacity(), stride)
        return self.stage

    def finish(self) -> None:
        """Bring the atlases to full resolution, even if a run ends early, clean and soften the opacity, fit looks."""
        self.set_resolution(STRIDES[-1])
        self.graphs.forget()
        if self.pins:  # Training follows the flow, which takes the places of a pin apart again.
            self.hold_pins()
        self.model.forget_mattes()
        self.model.forget_looks()
        remove_opacity_specks(self.model, self.opacity(), self.probability)
        self.model.mattes = solve_mattes(self.model, self.video)
        fit_looks(self.model, self.video, self.config.look_frames)

    def release(self) -> None:
        """Forget the video, the optimizer and what is computed from them; only the model stays."""
        self.graphs.forget()
        del self.video, self.optimizer, self.loss, self.stage, self.long_flow, self.probability

    def apply_strokes(self) -> None:
        """Correct the opacity by the strokes of the video, and average the atlases with the new opacity."""
        probability = correct_by_strokes(self.model, self.probability, self.video)
        self.set_model(self.model, probability, self.stage.stride)
        average_atlases(self.model, self.stage.frames, self.opacity(), self.stage.stride)

    def mend(self, pins: list[Pin] | None, rigidity: dict[int, float]) -> None:
        """Change the mappings by dials and pins, and average the atlases with them."""
        device, cpu = self.video.device, torch.device("cpu")
        self.graphs.forget()
        video = self.video.to(cpu)
        self.model.to(cpu)
        for layer, factor in rigidity.items():
            change_stiffness(self.model, video, layer, factor)
        self.model.to(device)
        self.pins = self.pins if pins is None else pins
        self.hold_pins()
        average_atlases(self.model, self.stage.frames, self.opacity(), self.stage.stride)

    def hold_pins(self) -> None:
        """Change the mappings so that all places of each pin are one place."""
        device = self.video.device
        fit_to_pins(self.model.to(torch.device("cpu")), self.pins)
        self.model.to(device)

    @torch.no_grad()
    def opacity(self) -> Tensor:
        """Return the objects' opacity at the nodes of its last grid, (F, T, ny, nx)."""
        nodes = self.model.last_alpha_grid(0).values.shape
        lattice = Lattice.of_nodes((nodes[2], nodes[3]), self.model.shape.size[1:])

        def opacity_at(t: int) -> Tensor:
            grid_frames = self.model.at_frames(t)
            return torch.cat([grid_frames.alpha(index, lattice)[0] for index in range(len(self.model.alphas))])

        return torch.stack(map_side_by_side(opacity_at, range(self.model.shape.size[0]), self.video.device), dim=1)

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

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all tensors that training changes."""
        return self.model.parameters()

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration; progress is how much of the run is done, 0 to 1. Returns the weighted terms, detached."""
        batch = self.draw_batch(progress)
        self.frames_used += len(batch.t)
        return self.graphs.run(batch, self.train_on)

    def train_on(self, batch: Batch) -> dict[str, Tensor]:
        """Change the model by one step with a batch. Returns the weighted terms, detached.

        batch: on the device of the model. Neither shapes nor the order of operations depend on its values, so a graph
        of the operations can be recorded.
        """
        flow_weights = self.loss.flow_weights(batch)

        def part_gradients(positions: range) -> Part:
            return self.loss.part_gradients(batch, flow_weights, positions)

        parts = self.cores.map(part_gradients, self.divide(batch))
        self.optimizer_step(batch, parts)
        names = [name for name in parts[0].terms if name != "photometric"]
        return {name: add_tensors(part.terms[name] for part in parts) for name in names}

    def draw_batch(self, progress: float) -> Batch:
        """Draw the frames of the next step, and the lattice for rigidity and flow. All tensors are on the CPU."""
        stage = self.set_resolution(self.stride_at(progress))
        t = self.next_pairs(self.pairs_at(stage.stride))
        rows, columns = (self.draw_lattice_axis(side) for side in self.model.shape.size[1:])
        if self.long_flow is None:  # Only now, because a model that is only finished needs none.
            is_used = self.config.long_flow_coeff > 0
            self.long_flow = follow_layers(self.video, self.probability) if is_used else []
        long_flow = [each.draw(t, self.rng) for each in self.long_flow]
        prior_weight, rate_factor = (torch.tensor(f(progress)) for f in (self.prior_weight, self.rate_factor))
        return Batch(stage, t, rows, columns, prior_weight, rate_factor, long_flow)

    def draw_lattice_axis(self, side: int) -> Tensor:
        """Draw the rows or columns of the lattice for rigidity and flow. side: number of those of the frame.

        As many are drawn each time, and each offset that fits into the frame is drawn equally often.
        """
        count = side // FLOW_STRIDE_PX
        first = torch.randint(0, side - FLOW_STRIDE_PX * (count - 1), (1,), generator=self.rng)
        return first + FLOW_STRIDE_PX * torch.arange(count)

    def divide(self, batch: Batch) -> list[range]:
        """Divide the frames of a batch, by their positions in it, among the cores; a GPU takes all of them at once."""
        count = min(self.cores.count, len(batch.t))
        bounds = [len(batch.t) * part // count for part in range(count + 1)]
        return [range(first, end) for first, end in pairwise(bounds)]

    def prior_weight(self, progress: float) -> float:
        """Return the weight of the cross-entropy with the refined masks.

        It is `prior_coeff`, or the bootstrapping weight while that is larger. The bootstrapping weight is
        `alpha_bootstrapping_factor` at the start and falls tenfold with each tenth of the run.
        """
        config = self.config
        return max(config.prior_coeff, config.alpha_bootstrapping_factor * 0.1 ** (10 * progress))

    def rate_factor(self, progress: float) -> float:
        """Return the factor of all learning rates: 1 until `grid_decay_from`, then falling to `grid_rate_end`."""
        begin = self.config.grid_decay_from
        return self.config.grid_rate_end ** max(0.0, (progress - begin) / (1 - begin))

    @torch.no_grad()
    def optimizer_step(self, batch: Batch, parts: list[Part]) -> None:
        """Let the optimizer change the parameters that the batch used."""
        config, factor, rows = self.config, batch.rate_factor, batch.t
        rules = {
            "mappings": StepRule(config.grid_rate_mapping * factor, floor=MAPPING_FLOOR),
            "alphas": StepRule(config.grid_rate_alpha * factor),
            "light": StepRule(config.grid_rate_light * factor),
            "atlases": StepRule(config.grid_rate_atlas * factor, COLOR_RANGE),
        }
        fields = self.model.fields_by_name()
        for name, gradient in add_frame_gradients(parts, len(rows)).items():
            field, level = name.rsplit(".", 1)
            rule, nodes = rules[name.split(".")[0]], fields[field][int(level)].values
            self.optimizer.step(name, nodes, [gradient], rule, rows)
        for name, values in collect_shared_tensors(self.model).items():
            gradients = [each for part in parts if (each := part.shared[name]) is not None]
            if gradients:
                self.optimizer.step(name, values, gradients, rules[name.split(".")[0]], run=self.cores.map)

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
            "grid_pins": [pin.values() for pin in self.pins],
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
            model.forget_looks()
            self.set_model(model, checkpoint["grid_probability"].float() / 255, int(checkpoint["grid_stride"]))
            self.optimizer.load_state_dict(checkpoint["grid_optimizer"])
            self.pending_pairs, self.round = list(checkpoint["grid_waiting"]), int(checkpoint["grid_round"])
            self.rng.set_state(checkpoint["grid_random_state"].cpu())
            self.pins = [Pin.from_values(values) for values in checkpoint.get("grid_pins", ())]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{path}: has no usable state of the training; train again") from None


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
