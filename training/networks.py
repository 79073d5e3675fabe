"""Training of the published networks: the loss terms of one batch, the start of the mappings, and the steps of Adam."""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import loss_utils
from alignment.layers import box_corners, layer_pixels, object_boxes
from alignment.pins import Pin
from alignment.shutter import align_with_shutter
from command_line import UserError
from config import Config, rigidity_weight
from implicit_neural_networks import AtlasModel, Layer, Sample, visibility
from masks.strokes import correct_masks
from parallel import processes
from training.learner import ShowStart
from training.sampling import Batch, color_steps, draw_batch
from unwrap_utils import Video, pretrain_mapping, uv_scale_px

DECAY_START = 0.4  # Progress of the run, 0 to 1, from which on the learning rates decay.
LARGEST_FILL = 0.95  # Largest part of the side of a layer's square that an aligned start may use.


# Values of a term at some points, their weights, and the coefficient of the term.
WeightedTerm = tuple[Tensor, Tensor, float]


def loss_terms(
    model: AtlasModel,
    video: Video,
    batch: Batch,
    config: Config,
    iteration: int,
    share: Callable[[Tensor], Tensor] = torch.ones_like,
) -> dict[str, Tensor]:
    """Return all terms of the paper's loss at one batch, each multiplied by its coefficient. Their sum is the loss.

    The terms depend on the iteration: bootstrapping and global rigidity end after a number of iterations. share: factor
    of a mean, by the sum of its weights; see `share_of_batch`.
    """
    points = video.normalize(batch.points_px)
    uv, alpha = model.uvs(points), model.alpha(points[: batch.num_alpha])
    sample = Sample(uv[:, : batch.num_color], alpha[:, : batch.num_color], model.colors(uv[:, : batch.num_color]))
    terms = color_terms(sample, batch, config) | rigidity_terms(model, video, batch, uv, config, iteration)
    terms |= flow_terms(model, video, batch, uv, alpha, config)
    if iteration <= config.stop_bootstrapping_iteration:
        # The mask of an object says nothing where an object in front of it hides it.
        uncovered = torch.cumprod(1 - batch.samples_mask, dim=0)
        mask_weight = torch.cat((torch.ones_like(uncovered[:1]), uncovered[:-1]))
        entropy = mask_weight * loss_utils.bootstrapping_loss(alpha[:, batch.samples], batch.samples_mask)
        terms["bootstrapping"] = (entropy.sum(0), batch.samples_weight, config.alpha_bootstrapping_factor)
    # Flow terms have two rows of weights, forward and backward; each term is the mean of the means of its rows.
    return {
        name: coefficient * (loss_utils.masked_mean(values, weight) * share(weight.sum(-1))).mean()
        for name, (values, weight, coefficient) in terms.items()
    }


def color_terms(sample: Sample, batch: Batch, config: Config) -> dict[str, WeightedTerm]:
    """Return the terms of colour, its gradient (Eq. 7) and sparsity; sample: of the pixels of the batch."""
    rgb = sample.rgb
    color = loss_utils.color_loss(rgb[batch.samples], batch.samples_rgb)
    terms = {"color": (color, batch.samples_weight, config.rgb_coeff)}
    if config.use_gradient_loss:
        gradient = loss_utils.gradient_loss(color_steps(rgb[batch.gradient]), batch.gradient_target)
        terms["gradient"] = (gradient, batch.gradient_weight, config.gradient_loss_coeff)
    sparsity = loss_utils.sparsity_loss(sample.alpha[:, batch.samples], sample.colors[:-1, batch.samples]).sum(0)
    return terms | {"sparsity": (sparsity, batch.samples_weight, config.sparsity_coeff)}


def rigidity_terms(
    model: AtlasModel, video: Video, batch: Batch, uv: Tensor, config: Config, iteration: int
) -> dict[str, WeightedTerm]:
    """Return the terms of rigidity (Eq. 9) of all layers; uv (L, N, 2) of the batch."""
    px_per_uv = model.px_per_uv(0, video.size)  # the same for all layers of networks
    uv_here, uv_left, uv_above = uv[:, batch.rigidity].unbind(1)
    jacobians = loss_utils.jacobian(uv_here, uv_left, uv_above, px_per_uv, config.derivative_amount)
    terms: dict[str, WeightedTerm] = {}
    for layer, rigidity in zip(model.layers, loss_utils.rigidity_loss(jacobians), strict=True):
        coefficient = rigidity_weight(config, layer.index)
        terms[f"rigidity_{layer.name}"] = (rigidity, batch.rigidity_weight, coefficient)
        if config.include_global_rigidity_loss and iteration <= config.stop_global_rigidity:
            far = global_rigidity(model, video, batch, layer, uv[layer.index], config)
            factor = config.global_rigidity_coeff_bg if layer.is_background else config.global_rigidity_coeff_fg
            terms[f"global_rigidity_{layer.name}"] = (far, batch.global_rigidity_weight, coefficient * factor)
    return terms


def flow_terms(
    model: AtlasModel, video: Video, batch: Batch, uv: Tensor, alpha: Tensor, config: Config
) -> dict[str, WeightedTerm]:
    """Return the terms of flow of mappings (Eq. 11) and opacity (Eq. 12); uv (L, N, 2) and alpha of the batch."""
    matches = slice(batch.num_color, batch.num_alpha)
    layer_visibility = visibility(alpha[:, batch.flow]).squeeze(-1)
    distance = loss_utils.flow_loss(uv[:, batch.flow], uv[:, matches], model.px_per_uv(0, video.size))
    terms: dict[str, WeightedTerm] = {}
    for layer in model.layers:
        flow = layer_visibility[layer.index] * distance[layer.index]
        terms[f"flow_{layer.name}"] = (flow, batch.flow_weight, config.optical_flow_coeff)
    alpha_change = loss_utils.alpha_flow_loss(alpha[:, batch.flow], alpha[:, matches]).sum(0)
    return terms | {"flow_alpha": (alpha_change, batch.flow_weight, config.alpha_flow_factor)}


def share_of_batch(weight_sum: Tensor) -> Tensor:
    """Return the factor of a weighted mean over this process's part of a batch, from the sum of its weights.

    With it, the mean of the processes' values is the weighted mean over the whole batch.
    """
    total = processes.add_up(weight_sum)
    return processes.count() * weight_sum / total.clamp(min=1e-12)


class BatchLoss(nn.Module):
    """The terms of the loss as a module, because DistributedDataParallel averages the gradients of modules."""

    def __init__(self, model: AtlasModel, video: Video, config: Config):
        super().__init__()
        self.model, self.video, self.config = model, video, config

    def forward(self, batch: Batch, iteration: int) -> dict[str, Tensor]:
        """Return the weighted terms of this process's part of a batch."""
        share = torch.ones_like if processes.count() == 1 else share_of_batch
        return loss_terms(self.model, self.video, batch, self.config, iteration, share)


def global_rigidity(model: AtlasModel, video: Video, batch: Batch, layer: Layer, uv: Tensor, config: Config) -> Tensor:
    """Return the rigidity loss (Eq. 9) of a layer over a long step, (R',).

    uv: (P, 2) of the layer at the points of the batch. A short step keeps neighbouring pixels together; a long step
    keeps the whole atlas from folding.
    """
    steps_px = (config.global_rigidity_derivative_amount_fg, config.global_rigidity_derivative_amount_bg)
    step_px = steps_px[layer.is_background]
    x, y, t = batch.points_px[batch.global_rigidity].unbind(1)
    neighbours = torch.cat((torch.stack((x - step_px, y, t), dim=1), torch.stack((x, y - step_px, t), dim=1)))
    uv_left, uv_above = model.uv(video.normalize(neighbours), layer.index).chunk(2)
    px_per_uv = model.px_per_uv(layer.index, video.size)
    return loss_utils.rigidity_loss(
        loss_utils.jacobian(uv[batch.global_rigidity], uv_left, uv_above, px_per_uv, step_px)
    )


def identity_target(video: Video, scale: float, xyt_px: Tensor) -> Tensor:
    """Return uv (N, 2) = scale * (x, y) of points (N, 3), with x and y as network inputs: the published start."""
    return scale * video.normalize(xyt_px)[:, :2]


def transform_target(matrices: Tensor, xyt_px: Tensor) -> Tensor:
    """Return uv (N, 2) of points (N, 3) by the transform of their frame. matrices: (T, 3, 3) from pixels to uv."""
    points = torch.cat((xyt_px[:, :2], torch.ones_like(xyt_px[:, :1])), dim=1)
    uvw = (matrices[xyt_px[:, 2].long()] @ points[:, :, None]).squeeze(-1)
    return uvw[:, :2] / uvw[:, 2:]


def fit_alignment_targets(video: Video, scale: float) -> tuple[Tensor, float]:
    """Fit the motion of every layer and place it in the layer's square.

    scale: the uv_mapping_scale of the config. Returns transforms (L, T, 3, 3) from pixels to uv, and the
    uv_mapping_scale that they need, which is at most the given one.
    """
    host_video = video.to(torch.device("cpu"))
    frames, height, width = host_video.size
    _, transforms = align_with_shutter(host_video)
    frame_boxes = np.tile([0, height, 0, width], (frames, 1))
    boxes = [*(object_boxes(np.asarray(member), 0.0) for member, _ in layer_pixels(host_video)[:-1]), frame_boxes]
    corners = [box_corners(motion, box) for motion, box in zip(transforms, boxes, strict=True)]
    centers = [(points.max(0) + points.min(0)) / 2 for points in corners]
    half_side_px = max(float(np.abs(points - center).max()) for points, center in zip(corners, centers, strict=True))
    scale = min(scale, LARGEST_FILL * max(height, width) / (2 * half_side_px))
    px_per_uv = uv_scale_px((height, width), scale)
    to_uv = [np.array([[1, 0, -x], [0, 1, -y], [0, 0, px_per_uv]]) / px_per_uv for x, y in centers]
    return torch.from_numpy(np.stack(to_uv)[:, None] @ transforms).float().to(video.device), scale


class NetworkLearner:
    """An AtlasModel with its optimizer and its batches; see `training.learner.Learner` for the interface."""

    def __init__(self, config: Config, video: Video, rng: torch.Generator):
        self.config, self.video, self.rng = config, video, rng
        # The same seed must give the same loss. On a CPU the threads must therefore add up gradients in a fixed
        # order; on a GPU this would make training slower.
        torch.use_deterministic_algorithms(video.device.type == "cpu")
        self.model = AtlasModel(config).to(video.device)
        self.optimizer = torch.optim.Adam(self.model.parameter_groups(), lr=config.learning_rate, fused=True)
        self.parts_done, self.is_whole, self.seconds_to_finish = 0, True, 0.0
        self.loss: nn.Module | None = None  # made with the first batch, when the networks have their start
        self.frame_count = video.size[0]
        self.frames_used: float = 0  # frames in all batches so far, by the number of their pixels

    def initialize(self, show_start: ShowStart, _folder: Path) -> None:
        """Pre-train the mappings towards the values from which training starts.

        The published start is uv = uv_mapping_scale * (x, y). With initialisation "alignment" each mapping starts as
        the measured motion of its layer; this may lower the model's uv_mapping_scale, so that everything that the
        camera shows during the clip fits into the atlas. show_start is not called, because networks show nothing
        useful before they are trained.
        """
        self.video.masks = correct_masks(self.video)
        is_aligned = self.config.initialisation == "alignment"
        if is_aligned:
            matrices, self.model.uv_mapping_scale = fit_alignment_targets(self.video, self.model.uv_mapping_scale)
        for layer in self.model.layers:
            is_pretrained = self.config.pretrain_mapping2 if layer.is_background else self.config.pretrain_mapping1
            if is_pretrained and self.config.pretrain_iter_number:
                if is_aligned:
                    target = partial(transform_target, matrices[layer.index])
                else:
                    target = partial(identity_target, self.video, self.model.uv_mapping_scale)
                mapping = self.model.mappings[layer.index]
                pretrain_mapping(mapping, layer.name, target, self.video, self.config, self.rng)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all tensors that training changes."""
        return self.model.parameters()

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration and return the weighted loss terms, detached.

        progress: how much of the run is done, 0 to 1.
        """
        _, height, width = self.video.size
        self.frames_used += self.config.samples_batch / (height * width)
        terms = self.batch_terms(iteration)
        self.set_learning_rates(progress)
        self.optimizer.zero_grad()
        reduce(torch.add, terms.values()).backward()
        self.optimizer.step()
        if processes.count() == 1:
            return {name: value.detach() for name, value in terms.items()}
        totals = processes.add_up(torch.stack(list(terms.values()))) / processes.count()
        return dict(zip(terms, totals, strict=True))

    def batch_terms(self, iteration: int) -> dict[str, Tensor]:
        """Return the weighted loss terms of the next batch. Nothing in this function waits for the device."""
        if self.loss is None:
            loss: nn.Module = BatchLoss(self.model, self.video, self.config)
            self.loss = DistributedDataParallel(loss) if processes.count() > 1 else loss
        terms: dict[str, Tensor] = self.loss(draw_batch(self.video, self.config, self.rng), iteration)
        return terms

    def set_learning_rates(self, progress: float) -> None:
        """Set the learning rates of the next step.

        They are constant until DECAY_START and then decay exponentially, to `learning_rate_end` times their value.
        """
        config = self.config
        exponent = max(0.0, (progress - DECAY_START) / (1 - DECAY_START))
        appearance_rate = config.learning_rate_appearance or config.learning_rate
        for index, group in enumerate(self.optimizer.param_groups):
            rate = config.learning_rate if index < len(self.model.mappings) else appearance_rate
            group["lr"] = rate * config.learning_rate_end**exponent

    def apply_strokes(self) -> None:
        """Raise UserError: strokes correct networks through the masks, which they learn at the beginning only."""
        raise UserError(
            "strokes correct a finished run of representation 'grid' alone; train networks anew with --strokes"
        )

    def mend(self, pins: list[Pin] | None, rigidity: dict[int, float]) -> None:
        """Raise UserError: networks have no nodes that could be moved."""
        raise UserError(
            "pins and dials mend a finished run of representation 'grid' alone; train one with config/fast.json"
        )

    def finish(self) -> None:
        """Do nothing: networks have one resolution only."""

    def release(self) -> None:
        """Forget the video and the optimizer; only the model stays."""
        del self.video, self.optimizer, self.loss

    def checkpoint(self) -> dict[str, Any]:
        """Return the state of the networks and of the optimizer under the published keys."""
        return self.model.checkpoint() | {"optimizer_all_state_dict": self.optimizer.state_dict()}

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Set the networks and the optimizer from a checkpoint of this project or a published one. Raises UserError."""
        self.model.load_checkpoint(checkpoint, path)
        try:
            state = checkpoint["optimizer_all_state_dict"]
            for group in state["param_groups"]:
                group["fused"] = True  # False in published checkpoints; True gives equal results in less time
            self.optimizer.load_state_dict(state)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: has no usable optimizer state; train again") from None
