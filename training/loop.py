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

from command_line import Stopped, UserError, warn
from config import Config, config_text, load_config
from evaluate import evaluate
from evaluation.plots import plot_training
from evaluation.preview import write_preview
from grids.learner import GridLearner
from implicit_neural_networks import CHECKPOINT_FORMAT, Model, read_checkpoint, write_checkpoint
from masks.provenance import masks_found_by_method
from media import Pixels, fresh_folder, list_images, to_8_bit, write_text
from media.clip import open_clip
from rendering.frames import render_frame
from rendering.trained_run import TrainedRun
from training.learner import Learner
from training.log import Log, open_tensorboard
from training.networks import NetworkLearner
from training.stopping import StopSignal, Stopwatch
from unwrap_utils import load_video, pick_device

LEARNERS: dict[str, type[NetworkLearner] | type[GridLearner]] = {"mlp": NetworkLearner, "grid": GridLearner}


class Trainer:
    """One run: its folder, learner, random numbers, log and checkpoints.

    `iteration` counts finished steps. Everything that decides the next step is in the checkpoint, so a resumed run
    gives the curve of an unbroken one.
    """

    def __init__(self, config: Config, folder: Path, device: torch.device | None = None):
        """device: None takes the GPU if there is one."""
        self.config, self.folder = config, folder
        self.watch = Stopwatch()
        self.clip = open_clip(Path(config.data_folder), config)
        self.device = device or pick_device()
        torch.manual_seed(config.seed)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.iteration = 0
        self.saved_iteration: int | None = None
        self.psnr: float | None = None
        self.video = load_video(self.clip, self.device, masks_found_by_method(self.clip))
        self.learner: Learner = LEARNERS[config.representation](config, self.video, self.generator)
        self.log = Log(folder / "log.jsonl")
        self.stop = StopSignal()

    @property
    def model(self) -> Model:
        return self.learner.model

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
            raise self.divergence_error()
        state: dict[str, Any] = self.learner.checkpoint() | {
            "format": CHECKPOINT_FORMAT,
            "iteration": self.iteration,
            "frames_used": self.learner.frames_used,
            "random_state": self.generator.get_state(),
            "seconds": self.watch.seconds,
        }
        write_checkpoint(self.checkpoint_path, state)
        self.saved_iteration = self.iteration

    def divergence_error(self) -> UserError:
        """What to tell about a run whose numbers are no numbers any more."""
        return UserError(
            f"{self.folder}: the loss or the networks became NaN at iteration {self.iteration}; the last good "
            "checkpoint is kept. Lower learning_rate (grid_rate_* for grids) in the config"
        )

    def restore(self, path: Path) -> dict[str, Any]:
        """Take weights, optimizer, iteration and random state from a checkpoint, ours or a published one; returns it.

        A published one has no random state: the config's seed is used.
        """
        checkpoint = read_checkpoint(path, self.device)
        self.learner.restore(checkpoint, path)
        try:
            self.iteration = self.saved_iteration = int(checkpoint["iteration"])
            self.learner.frames_used = checkpoint.get("frames_used", math.inf)
        except (KeyError, ValueError, TypeError):
            raise UserError(f"{path}: has no usable iteration; train again") from None
        if "random_state" in checkpoint:
            try:
                self.generator.set_state(checkpoint["random_state"].cpu())
            except RuntimeError:
                warn(f"{path} was written on another kind of device; the seed's random numbers are used")
        return checkpoint

    def initialize(self) -> None:
        """Give the model its start; a first picture is there before the start is complete, where that takes long."""
        self.learner.initialize(self.show_start)

    def show_start(self, model: Model, atlases: list[Pixels]) -> None:
        """Write preview.png from a model that has had no training yet, and its atlas pictures (h, w, 3)."""
        middle = len(self.clip) // 2
        frame = render_frame(model, self.clip, middle, full_range=True)
        pictures = {
            "input": self.clip.frame(middle),
            "reconstruction": to_8_bit(frame.rgb),
            "alpha": to_8_bit(frame.coverage),
        }
        write_preview(self.folder / "preview.png", pictures, atlases)
        print(f"a first picture after {self.watch.seconds:.1f} s: {self.folder / 'preview.png'}", flush=True)

    def step(self) -> dict[str, Tensor]:
        """One iteration; returns the weighted terms."""
        terms = self.learner.step(self.iteration, self.progress)
        self.iteration += 1
        return terms

    def run(self) -> None:
        """Train to the end of the config, evaluating, logging and saving on the way. Raises Stopped on a signal."""
        with self.stop.install():
            try:
                with open_tensorboard(self.folder, self.iteration) as events:
                    self.loop(events)
            except KeyboardInterrupt:
                if self.saved_iteration != self.iteration:
                    self.save()
                raise self.stop_report() from None

    def train_without_evaluating(self) -> None:
        """Only the steps, until the iterations or the time are over: for benchmarks."""
        with self.make_progress_bar() as progress:
            while not self.is_finished:
                self.step()
                progress.update(self.units_done - progress.n)
        self.learner.finish()

    def stop_report(self) -> Stopped:
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
    def progress(self) -> float:
        """How much of the run has passed, 0 to 1: of the time budget, where there is one, else of the iterations."""
        return min(1.0, self.units_done / (self.config.time_budget_s or self.config.iters_num))

    @property
    def units_done(self) -> float:
        """Seconds, where there is a time budget, else iterations."""
        budget = self.config.time_budget_s
        return self.iteration if budget is None else min(self.watch.seconds, budget)

    def warn_if_short(self) -> None:
        """Say so when the time was up before every frame had been used once."""
        if self.config.time_budget_s is not None and self.learner.frames_used < len(self.clip):
            warn(
                f"the time budget of {self.config.time_budget_s:g} s ended after iteration {self.iteration}, in "
                "less than one pass over the clip; what you get is the start, give more time for better"
            )

    def loop(self, events: Any) -> None:
        """The iterations; a signal ends them between two steps, with the checkpoint written."""
        config = self.config
        is_due = self.is_finished or (self.iteration and self.iteration % config.evaluate_every == 0)
        if self.is_finished:
            self.learner.finish()
            self.save()
        if is_due and not (self.evaluation_folder / "metrics.json").exists():
            self.evaluate(events)  # it was cut short when the run was stopped
        with self.make_progress_bar() as progress:
            is_last = self.is_finished
            while not is_last:
                with self.stop.defer():
                    terms = self.step()
                    is_last = self.is_finished  # asked once: between two questions the time may run out
                    if is_last:
                        self.learner.finish()
                    progress.update(self.units_done - progress.n)
                    if self.iteration % config.log_every == 0 or is_last:
                        self.report(terms, events, progress)
                    is_evaluation = self.iteration % config.evaluate_every == 0 or is_last
                    if self.iteration % config.checkpoint_every == 0 or is_evaluation or self.stop.received:
                        self.save()
                if self.stop.received:
                    raise KeyboardInterrupt
                if is_evaluation:
                    self.evaluate(events)
        self.warn_if_short()

    def make_progress_bar(self) -> tqdm:
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
            raise self.divergence_error()
        self.log.add({"iteration": self.iteration, "total": total, **values, "seconds": round(self.watch.seconds, 3)})
        for name, value in {"total": total, **values}.items():
            events.add_scalar(f"Loss/{name}", value, self.iteration)
        squared = values.get("color", 0.0) / (3 * self.config.rgb_coeff) if self.config.rgb_coeff else 0.0
        of_batch = f"{-10 * math.log10(squared):.1f} dB" if squared > 0 else "unknown"
        quality = {"psnr_of_batch": of_batch} if self.psnr is None else {"psnr": f"{self.psnr:.2f} dB"}
        progress.set_postfix(loss=f"{total:.1f}", **quality)

    def evaluate(self, events: Any) -> None:
        """Write the published outputs to a folder named by the iteration, and the preview beside it."""
        folder = self.evaluation_folder
        run = TrainedRun(self.model, self.clip, self.config.alpha_range == "full", self.checkpoint_path)
        with self.watch.pause():
            found = evaluate(run, folder)
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


def start_run(config: Config, device: torch.device | None = None) -> Trainer:
    """Begin a new run in a folder of its own: with the model's start, or with the weights of `checkpoint_path`."""
    if config.load_checkpoint:
        read_checkpoint(Path(config.checkpoint_path))  # before the clip is read, which takes longer
    name = Path(config.data_folder).name
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config.results_folder_name) / f"{name}_{stamp}{config.add_to_experiment_folder_name}"
    trainer = Trainer(config, folder, device)  # checks the input before anything is written
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
    print_start(trainer)
    if not config.load_checkpoint:
        with trainer.stop.install():
            try:
                trainer.initialize()
            except KeyboardInterrupt:
                raise trainer.stop_report() from None
        trainer.save()
    return trainer


def resume_run(folder: Path, time_budget_s: float | None = None, device: torch.device | None = None) -> Trainer:
    """The run in a folder, as it was at its last checkpoint; time_budget_s counts from its very beginning."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; --resume takes a folder that train.py wrote")
    if missing := [name for name in ("config.json", "checkpoint") if not (folder / name).is_file()]:
        raise UserError(f"{folder} has no {missing[0]}; --resume takes the folder of a run that train.py began")
    config = load_config(folder / "config.json")
    if time_budget_s is not None:
        config = replace(config, time_budget_s=time_budget_s)
    read_checkpoint(folder / "checkpoint")  # before the clip is read, which takes longer
    trainer = Trainer(config, folder, device)
    checkpoint = trainer.restore(trainer.checkpoint_path)
    trainer.watch.restore(float(checkpoint.get("seconds", 0.0)))
    trainer.log.restore(trainer.iteration)
    trainer.psnr = next((row["psnr"] for row in reversed(trainer.log.rows) if "psnr" in row), None)
    print_start(trainer)
    if trainer.is_finished:
        warn(f"{folder} is finished; raise iters_num or time_budget_s in its config.json to go on")
    return trainer


def print_start(trainer: Trainer) -> None:
    """Say what was loaded and where it will be written."""
    clip = trainer.clip
    print(f"{clip.folder}: {len(clip)} frames of {clip.width} x {clip.height}, on {trainer.device}")
    if (there := len(list_images(clip.folder))) > len(clip):
        warn(f"the clip has {there} frames, the first {len(clip)} are used; raise maximum_number_of_frames for more")
    print(f"iteration {trainer.iteration} of {trainer.config.iters_num}; writing to {trainer.folder}", flush=True)
