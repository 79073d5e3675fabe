"""Training the published networks: the terms at one batch, and the steps of Adam."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import loss_utils
from alignment.layers import align_layers, box_corners, layer_pixels, object_boxes, refine_long_range
from command_line import UserError
from config import Config
from implicit_neural_networks import AtlasModel, Layer, Model, Sample, visibility
from training.sampling import Batch, color_steps, draw_batch
from unwrap_utils import Video, pretrain_mapping, uv_scale_px

DECAY_START = 0.4  # share of the run after which the learning rates fall
LARGEST_FILL = 0.95  # share of a layer's square that an aligned start may use


def loss_terms(model: AtlasModel, video: Video, batch: Batch, config: Config, iteration: int) -> dict[str, Tensor]:
    """All terms of the paper's loss at one batch, each already multiplied by its coefficient; their sum is the loss.

    The schedule is a function of the iteration: bootstrapping and global rigidity have a last one.
    """
    points = video.normalize(batch.points_px)
    uv, alpha = model.uvs(points), model.alpha(points[: batch.num_alpha])
    sample = Sample(uv[:, : batch.num_color], alpha[:, : batch.num_color], model.colors(uv[:, : batch.num_color]))
    names = model.layers.names
    px_per_uv = uv_scale_px(video.size[1:], model.uv_mapping_scale)
    rgb = sample.rgb

    values = {"color": loss_utils.color_loss(rgb[batch.samples], batch.samples_rgb)}
    weights = {"color": batch.samples_weight}
    coefficients = {"color": config.rgb_coeff}

    def add(name: str, value: Tensor, weight: Tensor, coefficient: float) -> None:
        values[name], weights[name], coefficients[name] = value, weight, coefficient

    if config.use_gradient_loss:
        steps = color_steps(rgb[batch.gradient])
        value = loss_utils.gradient_loss(steps, batch.gradient_target)
        add("gradient", value, batch.gradient_weight, config.gradient_loss_coeff)

    hidden = loss_utils.sparsity_loss(alpha[:, batch.samples], sample.colors[:-1, batch.samples]).sum(0)
    add("sparsity", hidden, batch.samples_weight, config.sparsity_coeff)

    jacobians = loss_utils.jacobian(*uv[:, batch.rigid].unbind(1), px_per_uv, config.derivative_amount)
    for name, rigidity in zip(names, loss_utils.rigidity_loss(jacobians), strict=True):
        add(f"rigidity_{name}", rigidity, batch.rigid_weight, config.rigidity_coeff)

    if config.include_global_rigidity_loss and iteration <= config.stop_global_rigidity:
        for layer in model.layers:
            rigidity = global_rigidity(model, video, batch, layer, uv[layer.index], config)
            coefficient = config.global_rigidity_coeff_bg if layer.is_background else config.global_rigidity_coeff_fg
            add(
                f"global_rigidity_{layer.name}",
                rigidity,
                batch.global_rigid_weight,
                config.rigidity_coeff * coefficient,
            )

    matches = slice(batch.num_color, batch.num_alpha)
    seen = visibility(alpha[:, batch.flow]).squeeze(-1)
    apart = loss_utils.flow_loss(uv[:, batch.flow], uv[:, matches], px_per_uv)
    for layer, name in enumerate(names):
        add(f"flow_{name}", seen[layer] * apart[layer], batch.flow_weight, config.optical_flow_coeff)
    change = loss_utils.alpha_flow_loss(alpha[:, batch.flow], alpha[:, matches]).sum(0)
    add("flow_alpha", change, batch.flow_weight, config.alpha_flow_factor)

    if iteration <= config.stop_bootstrapping_iteration:
        shown = torch.cumprod(1 - batch.samples_mask, dim=0)  # masks say nothing of what one in front hides
        known = torch.cat((torch.ones_like(shown[:1]), shown[:-1]))
        entropy = (known * loss_utils.bootstrapping_loss(alpha[:, batch.samples], batch.samples_mask)).sum(0)
        add("bootstrapping", entropy, batch.samples_weight, config.alpha_bootstrapping_factor)

    # Flow terms carry two rows of weights, forward and backward, and are the mean of the two means.
    return {
        name: coefficients[name] * loss_utils.masked_mean(value, weights[name]).mean() for name, value in values.items()
    }


def global_rigidity(model: AtlasModel, video: Video, batch: Batch, layer: Layer, uv: Tensor, config: Config) -> Tensor:
    """Rigidity over a long step (R',): Eq. 9 keeps neighbours together, this keeps the whole atlas from folding."""
    amounts = (config.global_rigidity_derivative_amount_fg, config.global_rigidity_derivative_amount_bg)
    step = amounts[layer.is_background]
    x, y, t = batch.points_px[batch.global_rigid].unbind(1)
    far = torch.cat((torch.stack((x - step, y, t), dim=1), torch.stack((x, y - step, t), dim=1)))
    left, above = model.uv(video.normalize(far), layer.index).chunk(2)
    return loss_utils.rigidity_loss(
        loss_utils.jacobian(
            uv[batch.global_rigid], left, above, uv_scale_px(video.size[1:], model.uv_mapping_scale), step
        )
    )


def identity_target(video: Video, scale: float, xyt_px: Tensor) -> Tensor:
    """The published start: uv = scale * (x, y)."""
    return scale * video.normalize(xyt_px)[:, :2]


def transform_target(matrices: Tensor, xyt_px: Tensor) -> Tensor:
    """Places by one transform (T, 3, 3) a frame, pixels to uv."""
    points = torch.cat((xyt_px[:, :2], torch.ones_like(xyt_px[:, :1])), dim=1)
    moved = (matrices[xyt_px[:, 2].long()] @ points[:, :, None]).squeeze(-1)
    return moved[:, :2] / moved[:, 2:]


def fit_alignment_targets(video: Video, scale: float) -> tuple[Tensor, float]:
    """Every layer's transforms (L, T, 3, 3) pixels -> uv, and the uv_mapping_scale they need, at most the given one."""
    host = video.to(torch.device("cpu"))
    frames, height, width = host.size
    transforms = refine_long_range(host, align_layers(host))
    whole = np.tile([0, height, 0, width], (frames, 1))
    boxes = [*(object_boxes(member, 0.0) for member, _ in layer_pixels(host)[:-1]), whole]
    corners = [box_corners(motion, box) for motion, box in zip(transforms, boxes, strict=True)]
    middles = [(points.max(0) + points.min(0)) / 2 for points in corners]
    widest = max(float(np.abs(points - middle).max()) for points, middle in zip(corners, middles, strict=True))
    scale = min(scale, LARGEST_FILL * max(height, width) / (2 * widest))
    px = uv_scale_px((height, width), scale)
    onto = [np.array([[1, 0, -x], [0, 1, -y], [0, 0, px]]) / px for x, y in middles]
    return torch.from_numpy(np.stack(onto)[:, None] @ transforms).float().to(video.device), scale


class NetworkLearner:
    """An AtlasModel, its optimizer and its batches."""

    def __init__(self, config: Config, video: Video, generator: torch.Generator):
        self.config, self.video, self.generator = config, video, generator
        # Same seed, same curve: several threads must add up gradients in one order. On a GPU that would cost speed.
        torch.use_deterministic_algorithms(video.device.type == "cpu")
        self.model = AtlasModel(config).to(video.device)
        self.optimizer = torch.optim.Adam(self.model.parameter_groups(), lr=config.learning_rate, fused=True)
        self.frames_used = 0  # as if a batch's pixels were whole frames

    def initialize(self, show_start: Callable[[Model], None]) -> None:
        """Pre-train the mappings towards their start.

        The published start is uv = uv_mapping_scale * (x, y). With initialisation "alignment" the mappings start as the
        layers really move; this may lower the model's uv_mapping_scale, so that everything the camera pans over fits
        into the atlas. show_start is not called: nothing can be seen before the networks are trained.
        """
        is_aligned = self.config.initialisation == "alignment"
        if is_aligned:
            matrices, self.model.uv_mapping_scale = fit_alignment_targets(self.video, self.model.uv_mapping_scale)
        for layer in self.model.layers:
            is_wanted = self.config.pretrain_mapping2 if layer.is_background else self.config.pretrain_mapping1
            if is_wanted and self.config.pretrain_iter_number:
                if is_aligned:
                    target = partial(transform_target, matrices[layer.index])
                else:
                    target = partial(identity_target, self.video, self.model.uv_mapping_scale)
                mapping = self.model.mappings[layer.index]
                pretrain_mapping(mapping, layer.name, target, self.video, self.config, self.generator)

    def step(self, iteration: int, progress: float) -> dict[str, Tensor]:
        """Do one iteration; progress is how much of the run is done, 0 to 1. Returns the weighted terms."""
        _, height, width = self.video.size
        self.frames_used += self.config.samples_batch / (height * width)
        terms = self.batch_terms(iteration)
        self.set_learning_rates(progress)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def batch_terms(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms at the next batch; nothing in here waits for the device."""
        batch = draw_batch(self.video, self.config, self.generator)
        return loss_terms(self.model, self.video, batch, self.config, iteration)

    def set_learning_rates(self, progress: float) -> None:
        """The learning rates of the next step: constant for a while, then falling to `learning_rate_end` of that."""
        config, fallen = self.config, max(0.0, (progress - DECAY_START) / (1 - DECAY_START))
        appearance = config.learning_rate_appearance or config.learning_rate
        for index, group in enumerate(self.optimizer.param_groups):
            base = config.learning_rate if index < len(self.model.mappings) else appearance
            group["lr"] = base * config.learning_rate_end**fallen

    def finish(self) -> None:
        """Networks have nothing left to do when the time is up."""

    def checkpoint(self) -> dict[str, Any]:
        """Networks and optimizer under the published keys."""
        return self.model.checkpoint() | {"optimizer_all_state_dict": self.optimizer.state_dict()}

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take networks and optimizer from a checkpoint, ours or a published one. Raises UserError."""
        self.model.load_checkpoint(checkpoint, path)
        try:
            state = checkpoint["optimizer_all_state_dict"]
            for group in state["param_groups"]:
                group["fused"] = True  # published checkpoints have False here; the result is equal, the step is faster
            self.optimizer.load_state_dict(state)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: has no usable optimizer state; train again") from None
