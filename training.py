"""The training loop: terms of one step, the run's folder, checkpoints, stopping and resuming."""

import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import loss_utils
from command_line import Stopped, UserError, warn
from config import Config, config_text, load_config
from evaluate import evaluate
from implicit_neural_networks import AtlasModel, Sample, read_checkpoint, visibility, write_checkpoint
from media import fresh_folder, write_text
from reporting.plots import plot_training
from reporting.preview import write_preview
from runs.log import Log, board
from runs.stopping import StopSignal, Stopwatch
from sampling import Batch, draw_batch, rgb_steps
from unwrap_utils import Video, load_video, open_clip, pick_device, pretrain_mapping, uv_scale_px

DECAY_START = 0.4  # share of the run after which the learning rates fall


def loss_terms(model: AtlasModel, video: Video, batch: Batch, config: Config, iteration: int) -> dict[str, Tensor]:
    """All terms of the paper's loss at one batch, each already multiplied by its coefficient; their sum is the loss.

    The schedule is a function of the iteration: bootstrapping and global rigidity have a last one.
    """
    points = video.normalize(batch.points_px)
    uv, alpha = model.uvs(points), model.alpha(points[: batch.opaque])
    sample = Sample(uv[:, : batch.colored], alpha[:, : batch.colored], model.colors(uv[:, : batch.colored]))
    names, foregrounds = [layer.name for layer in model.layers], len(alpha)
    px_per_uv = uv_scale_px(video.size[1:], config)
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


def global_rigidity(model: AtlasModel, video: Video, batch: Batch, layer: int, uv: Tensor, config: Config) -> Tensor:
    """Rigidity over a long step (R',): Eq. 9 keeps neighbours together, this keeps the whole atlas from folding."""
    is_background = layer == len(model.layers) - 1
    amounts = (config.global_rigidity_derivative_amount_fg, config.global_rigidity_derivative_amount_bg)
    step = amounts[is_background]
    x, y, t = batch.points_px[batch.spread].unbind(1)
    far = torch.cat((torch.stack((x - step, y, t), dim=1), torch.stack((x, y - step, t), dim=1)))
    left, above = model.uv(video.normalize(far), layer).chunk(2)
    return loss_utils.rigidity_loss(
        loss_utils.jacobian(uv[batch.spread], left, above, uv_scale_px(video.size[1:], config), step)
    )


class Trainer:
    """One run: its folder, model, optimizer, random numbers, log and checkpoints.

    `iteration` counts finished steps. Everything that decides the next step is in the checkpoint, so a resumed run
    gives the curve of an unbroken one.
    """

    def __init__(self, config: Config, folder: Path):
        self.config, self.folder = config, folder
        self.watch = Stopwatch()
        self.clip = open_clip(Path(config.data_folder), config)
        self.device = pick_device()
        # Same seed, same curve: several threads must add up gradients in one order. On a GPU that would cost speed.
        torch.use_deterministic_algorithms(self.device.type == "cpu")
        torch.manual_seed(config.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.model = AtlasModel(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameter_groups(), lr=config.learning_rate, fused=True)
        self.iteration = 0
        self.saved_iteration: int | None = None
        self.psnr: float | None = None
        self.video = load_video(self.clip, self.device)
        self.log = Log(folder / "log.jsonl")
        self.stop = StopSignal()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def evaluation_folder(self) -> Path:
        """Where the evaluation at this iteration goes."""
        return self.folder / f"{self.iteration:06d}"

    def save(self) -> None:
        """Write the checkpoint: published keys, and what resuming needs besides.

        Raises UserError, and keeps the last good checkpoint, if the networks hold NaN.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            raise self.diverged()
        state: dict[str, Any] = self.model.checkpoint() | {
            "optimizer_all_state_dict": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "random_state": self.generator.get_state(),
            "seconds": self.watch.seconds,
        }
        write_checkpoint(self.checkpoint_path, state)
        self.saved_iteration = self.iteration

    def diverged(self) -> UserError:
        """What to tell about a run whose numbers are no numbers any more."""
        return UserError(
            f"{self.folder}: the loss or the networks became NaN at iteration {self.iteration}; the last good "
            "checkpoint is kept. Lower learning_rate in the config"
        )

    def restore(self, path: Path) -> dict[str, Any]:
        """Take weights, optimizer, iteration and random state from a checkpoint, ours or a published one; returns it.

        A published one has no random state: the config's seed is used.
        """
        checkpoint = read_checkpoint(path, self.device)
        self.model.load_checkpoint(checkpoint, path)
        try:
            state = checkpoint["optimizer_all_state_dict"]
            for group in state["param_groups"]:
                group["fused"] = True  # published ones say otherwise; the result is the same, the step is faster
            self.optimizer.load_state_dict(state)
            self.iteration = self.saved_iteration = int(checkpoint["iteration"])
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: has no usable optimizer state or iteration; train again") from None
        if "random_state" in checkpoint:
            try:
                self.generator.set_state(checkpoint["random_state"].cpu())
            except RuntimeError:
                warn(f"{path} was written on another kind of device; the seed's random numbers are used")
        return checkpoint

    def set_learning_rates(self) -> None:
        """The learning rates of the next step: constant for a while, then falling to `learning_rate_end` of that.

        With a time budget they follow the clock, so that the schedule fits however fast the machine is.
        """
        config, fallen = self.config, max(0.0, (self.share_done - DECAY_START) / (1 - DECAY_START))
        appearance = config.learning_rate_appearance or config.learning_rate
        for index, group in enumerate(self.optimizer.param_groups):
            base = config.learning_rate if index < len(self.model.mappings) else appearance
            group["lr"] = base * config.learning_rate_end**fallen

    def pretrain(self) -> None:
        """Give the mappings their upright start."""
        wanted = [self.config.pretrain_mapping1] * (len(self.model.layers) - 1) + [self.config.pretrain_mapping2]
        for layer, is_wanted in enumerate(wanted):
            if is_wanted and self.config.pretrain_iter_number:
                mapping, name = self.model.mappings[layer], self.model.layers[layer].name
                pretrain_mapping(mapping, name, self.video, self.config, self.generator)

    def loss_of_a_batch(self) -> dict[str, Tensor]:
        """The weighted terms at the next batch; nothing in here waits for the device."""
        batch = draw_batch(self.video, self.config, self.generator)
        return loss_terms(self.model, self.video, batch, self.config, self.iteration)

    def step(self) -> dict[str, Tensor]:
        """One iteration; returns the weighted terms."""
        terms = self.loss_of_a_batch()
        self.set_learning_rates()
        self.optimizer.zero_grad()
        sum(terms.values()).backward()
        self.optimizer.step()
        self.iteration += 1
        return {name: value.detach() for name, value in terms.items()}

    def run(self) -> None:
        """Train to the end of the config, evaluating, logging and saving on the way. Raises Stopped on a signal."""
        with self.stop.handled():
            try:
                with board(self.folder, self.iteration) as events:
                    self.loop(events)
            except KeyboardInterrupt:
                if self.saved_iteration != self.iteration:
                    self.save()
                raise self.stopped() from None

    def train_without_evaluating(self) -> None:
        """Only the steps, until the iterations or the time are over: for benchmarks."""
        with self.progress() as progress:
            while not self.is_finished:
                self.step()
                progress.update(self.progress_made - progress.n)

    def stopped(self) -> Stopped:
        """What to tell whoever stopped the run."""
        if not self.checkpoint_path.exists():
            return Stopped(f"stopped before the first step; nothing to keep in {self.folder}", self.stop.exit_code)
        return Stopped(
            f"stopped; {self.checkpoint_path} holds iteration {self.iteration}. "
            f"Continue with: python train.py --resume {shlex.quote(str(self.folder))}",
            self.stop.exit_code,
        )

    @property
    def is_finished(self) -> bool:
        """True when the iterations are done or the time is up."""
        budget = self.config.time_budget_s
        return self.iteration >= self.config.iters_num or (budget is not None and self.watch.seconds >= budget)

    @property
    def share_done(self) -> float:
        """How much of the run has passed, 0 to 1: of the time budget, where there is one, else of the iterations."""
        return min(1.0, self.progress_made / (self.config.time_budget_s or self.config.iters_num))

    @property
    def progress_made(self) -> float:
        """Seconds, where there is a time budget, else iterations."""
        budget = self.config.time_budget_s
        return self.iteration if budget is None else min(self.watch.seconds, budget)

    def loop(self, events: Any) -> None:
        """The iterations; a signal ends them between two steps, with the checkpoint written."""
        config = self.config
        is_due = self.iteration % config.evaluate_every == 0 or self.is_finished
        if self.iteration and is_due and not (self.evaluation_folder / "metrics.json").exists():
            self.evaluate(events)  # it was cut short when the run was stopped
        with self.progress() as progress:
            is_last = self.is_finished
            while not is_last:
                with self.stop.looked_at():
                    terms = self.step()
                    is_last = self.is_finished  # asked once: between two questions the time may run out
                    progress.update(self.progress_made - progress.n)
                    if self.iteration % config.log_every == 0 or is_last:
                        self.report(terms, events, progress)
                    is_evaluation = self.iteration % config.evaluate_every == 0 or is_last
                    if self.iteration % config.checkpoint_every == 0 or is_evaluation or self.stop.received:
                        self.save()
                if self.stop.received:
                    raise KeyboardInterrupt
                if is_evaluation:
                    self.evaluate(events)

    def progress(self) -> tqdm:
        """A bar over iterations, or over seconds where there is a time budget."""
        budget, name = self.config.time_budget_s, f"training {self.clip.name}"
        if budget is None:
            return tqdm(total=self.config.iters_num, initial=self.iteration, desc=name, unit="it")
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"
        return tqdm(total=budget, initial=min(self.watch.seconds, budget), desc=name, bar_format=shape)

    def report(self, terms: dict[str, Tensor], events: Any, progress: tqdm) -> None:
        """One line of the log: the only place in the loop that waits for the device."""
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        total = sum(values.values())
        if not math.isfinite(total):
            raise self.diverged()
        self.log.add({"iteration": self.iteration, "total": total, **values, "seconds": round(self.watch.seconds, 3)})
        for name, value in {"total": total, **values}.items():
            events.add_scalar(f"Loss/{name}", value, self.iteration)
        quality = "not yet" if self.psnr is None else f"{self.psnr:.2f} dB"
        progress.set_postfix(loss=f"{total:.1f}", psnr=quality)

    def evaluate(self, events: Any) -> None:
        """Write the published outputs to a folder named by the iteration, and the preview beside it."""
        folder, full_range = self.evaluation_folder, self.config.alpha_range == "full"
        with self.watch.held():
            found = evaluate(
                self.model, self.clip, folder, full_range, px_per_uv=uv_scale_px(self.video.size[1:], self.config)
            )
        self.psnr = found.metrics["psnr"]
        self.log.add({"iteration": self.iteration, "psnr": self.psnr, "seconds": round(self.watch.seconds, 3)})
        write_preview(self.folder / "preview.png", found.pictures, found.atlases)
        plot_training(self.folder / "curve.png", self.log.rows)
        events.add_scalar("Train/psnr", self.psnr, self.iteration)
        images = {f"Train/atlas{number}": atlas for number, atlas in enumerate(found.atlases, 1)}
        images["Train/recon_frame_0"] = found.pictures["first"]
        images["Train/recon_frame_end"] = found.pictures["last"]
        images["Input/rgb_0"] = found.pictures["first input"]
        for name, image in images.items():
            events.add_image(name, image, self.iteration, dataformats="HWC")
        tqdm.write(
            f"iteration {self.iteration}: PSNR {self.psnr:.2f} dB, wrote {folder} and {self.folder / 'preview.png'}"
        )


def start_run(config: Config, time_budget_s: float | None = None) -> Trainer:
    """A new run in a folder of its own, ready to go: pre-trained, or with the weights of `checkpoint_path`.

    time_budget_s, where given, replaces the config's.
    """
    config = with_budget(config, time_budget_s)
    if config.load_checkpoint:
        read_checkpoint(Path(config.checkpoint_path))  # before the clip is read, which takes longer
    name = Path(config.data_folder).name
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config.results_folder_name) / f"{name}_{stamp}{config.add_to_experiment_folder_name}"
    trainer = Trainer(config, folder)  # checks the input before anything is written
    if config.load_checkpoint:
        trainer.restore(Path(config.checkpoint_path))
        if trainer.is_finished:
            raise UserError(
                f"{config.checkpoint_path} holds iteration {trainer.iteration}, iters_num is {config.iters_num}; "
                "raise iters_num to train on"
            )
    trainer.folder = fresh_folder(folder)
    trainer.log = Log(trainer.folder / "log.jsonl")
    write_text(trainer.folder / "config.json", config_text(config))
    announce(trainer)
    if not config.load_checkpoint:
        with trainer.stop.handled():
            try:
                trainer.pretrain()
            except KeyboardInterrupt:
                raise trainer.stopped() from None
        trainer.save()
    return trainer


def resume_run(folder: Path, time_budget_s: float | None = None) -> Trainer:
    """The run in a folder, as it was at its last checkpoint; time_budget_s counts from its very beginning."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; --resume takes a folder that train.py wrote")
    if missing := [name for name in ("config.json", "checkpoint") if not (folder / name).is_file()]:
        raise UserError(f"{folder} has no {missing[0]}; --resume takes the folder of a run that train.py began")
    config = with_budget(load_config(folder / "config.json"), time_budget_s)
    trainer = Trainer(config, folder)
    checkpoint = trainer.restore(trainer.checkpoint_path)
    trainer.watch.restore(float(checkpoint.get("seconds", 0.0)))
    trainer.log.restore(trainer.iteration)
    trainer.psnr = next((row["psnr"] for row in reversed(trainer.log.rows) if "psnr" in row), None)
    announce(trainer)
    if trainer.is_finished:
        warn(f"{folder} is finished; raise iters_num or time_budget_s in its config.json to go on")
    return trainer


def with_budget(config: Config, time_budget_s: float | None) -> Config:
    """The config with another time budget, if one is given."""
    return config if time_budget_s is None else replace(config, time_budget_s=time_budget_s)


def announce(trainer: Trainer) -> None:
    """Say what was loaded and where it will be written."""
    clip = trainer.clip
    print(f"{clip.folder}: {len(clip)} frames of {clip.width} x {clip.height}, on {trainer.device}")
    print(f"iteration {trainer.iteration} of {trainer.config.iters_num}; writing to {trainer.folder}", flush=True)
