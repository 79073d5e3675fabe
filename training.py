"""The training loop: terms of one step, the run's folder, checkpoints, stopping and resuming."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import loss_utils
from command_line import Stopped, UserError, warn
from config import Config, config_text, load_config
from evaluate import Evaluation, evaluate
from implicit_neural_networks import AtlasModel, Sample, read_checkpoint, visibility, write_checkpoint
from media import write_text
from reporting.preview import write_preview
from sampling import Batch, draw_batch, rgb_steps
from unwrap_utils import Clip, Video, load_video, open_clip, pick_device, pretrain_mapping

LEARNING_RATE = 1e-4


def loss_terms(model: AtlasModel, video: Video, batch: Batch, config: Config, iteration: int) -> dict[str, Tensor]:
    """All terms of the paper's loss at one batch, each already multiplied by its coefficient; their sum is the loss.

    The schedule is a function of the iteration: bootstrapping and global rigidity have a last one.
    """
    points = video.normalize(batch.points_px)
    uv, alpha = model.uvs(points), model.alpha(points[: batch.opaque])
    sample = Sample(uv[:, : batch.colored], alpha[:, : batch.colored], model.colors(uv[:, : batch.colored]))
    names, foregrounds = [layer.name for layer in model.layers], len(alpha)
    px_per_uv = uv_scale_px(video, config)
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
        entropy = loss_utils.bootstrapping_loss(alpha[:, batch.samples], batch.samples_mask).sum(0)
        add("bootstrapping", entropy, batch.samples_weight, config.alpha_bootstrapping_factor)

    # Flow terms carry two rows of weights, forward and backward, and are the mean of the two means.
    return {
        name: coefficients[name] * loss_utils.masked_mean(value, weights[name]).mean() for name, value in values.items()
    }


def uv_scale_px(video: Video, config: Config) -> float:
    """Pixels per unit of uv, for derivatives and distances."""
    _, height, width = video.size
    return max(height, width) / (2 * config.uv_mapping_scale)


def global_rigidity(
    model: AtlasModel, video: Video, batch: Batch, layer: int, uv: Tensor, config: Config
) -> Tensor:
    """Rigidity over a long step (R',): Eq. 9 keeps neighbours together, this keeps the whole atlas from folding."""
    is_background = layer == len(model.layers) - 1
    amounts = (config.global_rigidity_derivative_amount_fg, config.global_rigidity_derivative_amount_bg)
    step = amounts[is_background]
    x, y, t = batch.points_px[batch.spread].unbind(1)
    far = torch.cat((torch.stack((x - step, y, t), dim=1), torch.stack((x, y - step, t), dim=1)))
    left, above = model.uv(video.normalize(far), layer).chunk(2)
    return loss_utils.rigidity_loss(
        loss_utils.jacobian(uv[batch.spread], left, above, uv_scale_px(video, config), step)
    )
