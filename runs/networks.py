"""Training the published networks: the terms at one batch, and the steps of Adam."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import loss_utils
from alignment.layers import all_transforms, box_corners, members, object_boxes, steadied
from command_line import UserError
from config import Config
from implicit_neural_networks import AtlasModel, Sample, visibility
from sampling import Batch, draw_batch, rgb_steps
from unwrap_utils import Video, pretrain_mapping, uv_scale_px

DECAY_START = 0.4  # share of the run after which the learning rates fall
FILLED = 0.95  # share of a layer's square that an aligned start may use


def loss_terms(model: AtlasModel, video: Video, batch: Batch, config: Config, iteration: int) -> dict[str, Tensor]:
    """All terms of the paper's loss at one batch, each already multiplied by its coefficient; their sum is the loss.

    The schedule is a function of the iteration: bootstrapping and global rigidity have a last one.
    """
    points = video.normalize(batch.points_px)
    uv, alpha = model.uvs(points), model.alpha(points[: batch.opaque])
    sample = Sample(uv[:, : batch.colored], alpha[:, : batch.colored], model.colors(uv[:, : batch.colored]))
    names, foregrounds = [layer.name for layer in model.layers], len(alpha)
    px_per_uv = uv_scale_px(video.size[1:], config.uv_mapping_scale)
    rgb = sample.rgb

    values = {"color": loss_utils.color_loss(rgb[batch.samples], batch.samples_rgb)}
    weights = {"color": batch.samples_weight}
    coefficients = {"color": config.rgb_coeff}

    def add(name: str, value: Tensor, weight: Tensor, coefficient: float) -> None:
        values[name], weights[name], coefficients[name] = value, weight, coefficient

    if config.use_gradient_loss:
        steps = rgb_steps(rgb[batch.gradient])
        value = loss_utils.gradient_loss(steps, batch.gradient_target)
        add("gradient", value, batch.gradient_weight, config.gradient_loss_coeff)

    hidden = loss_utils.sparsity_loss(alpha[:, batch.samples], sample.colors[:-1, batch.samples]).sum(0)
    add("sparsity", hidden, batch.samples_weight, config.sparsity_coeff)

    jacobians = loss_utils.jacobian(*uv[:, batch.rigid].unbind(1), px_per_uv, config.derivative_amount)
    for name, rigidity in zip(names, loss_utils.rigidity_loss(jacobians), strict=True):
        add(f"rigidity_{name}", rigidity, batch.rigid_weight, config.rigidity_coeff)

    if config.include_global_rigidity_loss and iteration <= config.stop_global_rigidity:
        for layer, name in enumerate(names):
            is_background = layer == foregrounds
            rigidity = global_rigidity(model, video, batch, layer, uv[layer], config)
            coefficient = config.global_rigidity_coeff_bg if is_background else config.global_rigidity_coeff_fg
            add(f"global_rigidity_{name}", rigidity, batch.spread_weight, config.rigidity_coeff * coefficient)

    matches = slice(batch.colored, batch.opaque)
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


def global_rigidity(model: AtlasModel, video: Video, batch: Batch, layer: int, uv: Tensor, config: Config) -> Tensor:
    """Rigidity over a long step (R',): Eq. 9 keeps neighbours together, this keeps the whole atlas from folding."""
    is_background = layer == len(model.layers) - 1
    amounts = (config.global_rigidity_derivative_amount_fg, config.global_rigidity_derivative_amount_bg)
    step = amounts[is_background]
    x, y, t = batch.points_px[batch.spread].unbind(1)
    far = torch.cat((torch.stack((x - step, y, t), dim=1), torch.stack((x, y - step, t), dim=1)))
    left, above = model.uv(video.normalize(far), layer).chunk(2)
    return loss_utils.rigidity_loss(
        loss_utils.jacobian(uv[batch.spread], left, above, uv_scale_px(video.size[1:], config.uv_mapping_scale), step)
    )


def upright_target(video: Video, scale: float, xyt_px: Tensor) -> Tensor:
    """The published start: uv = scale * (x, y)."""
    return scale * video.normalize(xyt_px)[:, :2]


def aligned_target(matrices: Tensor, xyt_px: Tensor) -> Tensor:
    """Places by one transform (T, 3, 3) a frame, pixels to uv."""
    points = torch.cat((xyt_px[:, :2], torch.ones_like(xyt_px[:, :1])), dim=1)
    moved = (matrices[xyt_px[:, 2].long()] @ points[:, :, None]).squeeze(-1)
    return moved[:, :2] / moved[:, 2:]


def alignment_targets(video: Video, scale: float) -> tuple[Tensor, float]:
    """Every layer's transforms (L, T, 3, 3) pixels -> uv, and the uv_mapping_scale they need, at most the given one."""
    host = video.to(torch.device("cpu"))
    frames, height, width = host.size
    transforms = steadied(host, all_transforms(host))
    whole = np.tile([0, height, 0, width], (frames, 1))
    boxes = [*(object_boxes(member, 0.0) for member, _ in members(host)[:-1]), whole]
    corners = [box_corners(motion, box) for motion, box in zip(transforms, boxes, strict=True)]
    middles = [(points.max(0) + points.min(0)) / 2 for points in corners]
    widest = max(float(np.abs(points - middle).max()) for points, middle in zip(corners, middles, strict=True))
    scale = min(scale, FILLED * max(height, width) / (2 * widest))
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

    def begin(self, _show: Callable) -> None:
        """Give the mappings their start: upright, or, with initialisation "alignment", as the layers really move.

        The latter may lower uv_mapping_scale, so that what the camera pans over fits the atlas.
        """
        is_aligned = self.config.initialisation == "alignment"
        if is_aligned:
            matrices, scale = alignment_targets(self.video, self.config.uv_mapping_scale)
            self.config = replace(self.config, uv_mapping_scale=scale)
            self.model.uv_mapping_scale = scale
        wanted = [self.config.pretrain_mapping1] * (len(self.model.layers) - 1) + [self.config.pretrain_mapping2]
        for layer, is_wanted in enumerate(wanted):
            if is_wanted and self.config.pretrain_iter_number:
                if is_aligned:
                    target = partial(aligned_target, matrices[layer])
                else:
                    target = partial(upright_target, self.video, self.config.uv_mapping_scale)
                mapping, name = self.model.mappings[layer], self.model.layers[layer].name
                pretrain_mapping(mapping, name, target, self.video, self.config, self.generator)

    def step(self, iteration: int, share: float) -> dict[str, Tensor]:
        """One iteration, the given number at the given share of the run (0 to 1); returns the weighted terms."""
        _, height, width = self.video.size
        self.frames_used += self.config.samples_batch / (height * width)
        terms = self.loss_of_a_batch(iteration)
        self.set_learning_rates(share)
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in terms.items()}

    def loss_of_a_batch(self, iteration: int) -> dict[str, Tensor]:
        """The weighted terms at the next batch; nothing in here waits for the device."""
        batch = draw_batch(self.video, self.config, self.generator)
        return loss_terms(self.model, self.video, batch, self.config, iteration)

    def set_learning_rates(self, share: float) -> None:
        """The learning rates of the next step: constant for a while, then falling to `learning_rate_end` of that."""
        config, fallen = self.config, max(0.0, (share - DECAY_START) / (1 - DECAY_START))
        appearance = config.learning_rate_appearance or config.learning_rate
        for index, group in enumerate(self.optimizer.param_groups):
            base = config.learning_rate if index < len(self.model.mappings) else appearance
            group["lr"] = base * config.learning_rate_end**fallen

    def finish(self) -> None:
        """Networks have nothing left to do when the time is up."""

    def checkpoint(self) -> dict[str, Any]:
        """Networks and optimizer under the published keys."""
        state = self.model.checkpoint() | {"optimizer_all_state_dict": self.optimizer.state_dict()}
        if self.config.initialisation == "alignment":
            state["uv_mapping_scale"] = self.config.uv_mapping_scale  # what the start settled
        return state

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take networks and optimizer from a checkpoint, ours or a published one. Raises UserError."""
        self.model.load_checkpoint(checkpoint, path)
        scale = checkpoint.get("uv_mapping_scale", self.config.uv_mapping_scale)
        self.config, self.model.uv_mapping_scale = replace(self.config, uv_mapping_scale=scale), scale
        try:
            state = checkpoint["optimizer_all_state_dict"]
            for group in state["param_groups"]:
                group["fused"] = True  # published ones say otherwise; the result is the same, the step is faster
            self.optimizer.load_state_dict(state)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: has no usable optimizer state; train again") from None
