"""The training loop: the steps of a run, its folder, checkpoints, reports, stopping and resuming."""

import math
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from command_line import Stopped, UserError, give_back_memory, warn
from config import Config
from evaluate import Evaluation, evaluate
from evaluation.plots import plot_training
from evaluation.preview import write_preview
from grids.learner import GridLearner
from grids.windowed_learner import WindowedLearner
from grids.windows import is_long
from implicit_neural_networks import Model
from masks.provenance import read_mask_sources
from masks.strokes import read_strokes
from media import Pixels, to_8_bit
from media.checkpoints import read_checkpoint, write_checkpoint
from media.clip import Clip, open_clip
from parallel import processes
from rendering.frames import render_frame
from rendering.trained_run import TrainedRun
from training.learner import Learner
from training.log import Log, open_tensorboard
from training.networks import NetworkLearner
from training.stopping import StopSignal, Stopwatch
from unwrap_utils import load_video, pick_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LEAST_STEPS = 0.5  # Least share of the time, from the start of a run or since it was resumed, that is left for steps.

LEARNERS: dict[str, type[NetworkLearner] | type[GridLearner]] = {"mlp": NetworkLearner, "grid": GridLearner}


def make_learner(
    config: Config,
    clip: Clip,
    device: torch.device,
    rng: torch.Generator,
    in_windows: bool | None = None,
    first: int = 0,
) -> Learner:
    """Read a clip and return the learner of a config for it. Raises UserError if the clip cannot be used.

    in_windows: whether the clip is trained in windows; None: as `is_long` says. first: of a clip in windows, the first
    frame that is read.
    """
    strokes = read_strokes(Path(config.strokes_folder), clip) if config.strokes_folder else {}
    if is_long(len(clip), config) if in_windows is None else in_windows:  # One window at a time goes to the device.
        sources, cpu = read_mask_sources(clip), torch.device("cpu")
        video = load_video(clip, cpu, sources, is_on_disk=True, first=first)
        return WindowedLearner(config, replace(video, strokes=strokes), rng)
    video = load_video(clip, device, read_mask_sources(clip))
    return LEARNERS[config.representation](config, replace(video, strokes=strokes), rng)


class Trainer:
    """One run: its folder, learner, random numbers, log and checkpoints.

    `iteration` is the number of finished steps. The checkpoint holds everything that decides the next step, so a
    resumed run has the same losses as a run that was never stopped.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str | None = None,
        in_windows: bool | None = None,
        first: int = 0,
    ):
        """Read the clip and build the learner; nothing is written.

        folder: where the run writes. device: None takes the GPU if there is one. in_windows, first: see `make_learner`.
        Raises UserError if the clip cannot be used.
        """
        self.config, self.folder = config, folder
        self.stopwatch = Stopwatch()
        self.stop_signal = StopSignal()
        self.clip = open_clip(Path(config.data_folder), config)
        self.device = pick_device(device)
        torch.manual_seed(config.seed)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.iteration = 0
        self.agreed_seconds = 0.0  # see `seconds`
        self.begin_s = 0.0  # seconds of the run before it was resumed
        self.saved_iteration: int | None = None  # of the last checkpoint
        self.psnr: float | None = None  # dB, of the last evaluation
        self.with_evaluation = True
        self.is_corrected = False  # strokes, pins or dials have changed the model since its checkpoint
        self.learner = make_learner(config, self.clip, self.device, self.rng, in_windows, first)
        self.log = Log(folder / "log.jsonl")

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self.learner.model

    @property
    def checkpoint_path(self) -> Path:
        """Path of the run's checkpoint."""
        return self.folder / "checkpoint"

    @property
    def evaluation_folder(self) -> Path:
        """Folder of the evaluation at the current iteration."""
        return self.folder / f"{self.iteration:06d}"

    # start and steps

    def initialize(self) -> None:
        """Set the model to its start. If that takes long, a preview is written before it is complete."""
        self.learner.initialize(self.write_start_preview, self.folder)
        give_back_memory()

    def write_start_preview(self, model: Model, atlases: list[Pixels], t: int | None = None) -> None:
        """Write preview.png from a model and the images (h, w, 3) of its atlases, without an evaluation.

        t: the frame that is shown; None: the middle one.
        """
        t = len(self.clip) // 2 if t is None else t
        frame = render_frame(model, self.clip, t, full_range=True)
        pictures = {
            "input": self.clip.frame(t),
            "reconstruction": to_8_bit(frame.rgb),
            "alpha": to_8_bit(frame.coverage),
        }
        preview = self.folder / "preview.png"
        write_preview(preview, pictures, atlases)
        print(f"wrote a preview after {self.stopwatch.seconds:.1f} s: {preview}", flush=True)

    def step(self) -> dict[str, Tensor]:
        """Do one iteration and return the weighted loss terms."""
        terms = self.learner.step(self.iteration, self.progress)
        self.iteration += 1
        return terms

    def train_without_evaluating(self, after_step: Callable[[], None] = lambda: None) -> None:
        """Do the steps until the iterations or the time budget end, without reports and checkpoints: for benchmarks.

        after_step: called after each step.
        """
        with self.make_progress_bar() as bar:
            while not self.is_finished:
                self.step()
                after_step()
                bar.update(self.work_done - bar.n)
        self.learner.finish()

    # the loop

    def run(self, with_evaluation: bool = True) -> None:
        """Train until the config ends the run, with reports, checkpoints and (with_evaluation) evaluations.

        Raises Stopped after a signal, with the checkpoint written, and UserError if the loss becomes NaN.
        """
        self.with_evaluation = with_evaluation
        with self.stop_signal.install():
            try:
                with ExitStack() as stack:
                    events = None
                    if processes.is_main():
                        events = stack.enter_context(open_tensorboard(self.folder, self.iteration))
                    self.train_and_evaluate(events)
            except (KeyboardInterrupt, processes.LostProcessError) as error:
                with self.stop_signal.defer():  # A second signal must not end what the first one began.
                    if self.saved_iteration != self.iteration:
                        self.save()
                raise self.make_stop_error(isinstance(error, processes.LostProcessError)) from None

    def train_and_evaluate(self, events: "SummaryWriter | None") -> None:
        """Do all iterations. Raises KeyboardInterrupt after a signal: during training only between two steps."""
        config = self.config
        is_last = self.is_finished
        is_evaluation_due = is_last or (self.iteration and self.iteration % config.evaluate_every == 0)
        # A stop may have interrupted this evaluation before the run was resumed; and corrections that leave no time
        # for another step have changed what was evaluated. Otherwise a finished run stays as it is.
        is_outdated = is_last and self.is_corrected
        if is_evaluation_due and (is_outdated or not (self.evaluation_folder / "metrics.json").exists()):
            if is_last:
                self.learner.finish()
                self.save()
            self.write_evaluation(events, is_last)
        with self.make_progress_bar() as bar:
            while not is_last:
                with self.stop_signal.defer():
                    parts_done = self.learner.parts_done
                    with processes.notice_lost_processes():
                        terms = self.step()
                        self.agree_on_time_and_stop()
                    is_last = self.is_finished  # Read once per step: the time may run out between two readings.
                    if is_last:
                        self.finish()
                    bar.update(self.work_done - bar.n)
                    if events and (self.iteration % config.log_every == 0 or is_last):
                        self.log_terms(terms, events, bar)
                    is_evaluation_due = self.iteration % config.evaluate_every == 0 or is_last
                    is_checkpoint_due = self.iteration % config.checkpoint_every == 0 or is_evaluation_due
                    has_done_part = self.learner.parts_done != parts_done
                    if is_checkpoint_due or has_done_part or self.stop_signal.received:
                        self.save()
                if self.stop_signal.received:
                    raise KeyboardInterrupt
                if is_evaluation_due:
                    self.write_evaluation(events, is_last)
        self.warn_about_short_budget()

    def finish(self) -> None:
        """Finish the model after the last step. If the time has ended the run, its budget counts as used up."""
        budget, has_time_ended = self.config.time_budget_s, self.iteration < self.config.iters_num
        self.learner.finish()
        give_back_memory()
        if budget is not None and has_time_ended:
            self.stopwatch.advance_to(budget)

    def agree_on_time_and_stop(self) -> None:
        """Let all processes go by the clock of the main one, and stop if one of them has received a signal."""
        if processes.count() > 1:
            seconds = self.stopwatch.seconds if processes.is_main() else 0.0
            signal_number = float(self.stop_signal.received or 0)
            self.agreed_seconds, signal_number = processes.take_largest([seconds, signal_number], self.device)
            self.stop_signal.received = int(signal_number) or None

    def make_stop_error(self, has_lost_process: bool = False) -> Stopped:
        """Return the exception that ends a run after a signal, with advice on how to continue it.

        has_lost_process: not a signal ended it, but another of its processes that was lost.
        """
        if not self.checkpoint_path.exists():
            return Stopped(
                f"stopped before the first step; nothing to keep in {self.folder}", self.stop_signal.exit_code
            )
        python = "python" if processes.count() == 1 else f"torchrun --nproc_per_node {processes.count()}"
        reason = "stopped, because another process of the run ended" if has_lost_process else "stopped"
        return Stopped(
            f"{reason}; {self.checkpoint_path} holds iteration {self.iteration}. "
            f"Continue with: {python} train.py --resume {shlex.quote(str(self.folder))}",
            1 if has_lost_process else self.stop_signal.exit_code,
        )

    def warn_about_short_budget(self) -> None:
        """Warn if the time budget ended before the batches had as many pixels as the clip."""
        if self.config.time_budget_s is not None and self.learner.frames_used < self.learner.frame_count:
            warn(
                f"the time budget of {self.config.time_budget_s:g} s ended after iteration {self.iteration}, in less "
                "than one pass over the clip; the result is hardly better than the start, so use a larger budget, such "
                f"as {2 * max(self.config.time_budget_s, self.stopwatch.seconds):.0f} s"
            )

    # progress

    @property
    def is_finished(self) -> bool:
        """True when all iterations are done or the time for steps is used up."""
        steps_s = self.seconds_for_steps
        return self.iteration >= self.config.iters_num or (steps_s is not None and self.seconds >= steps_s)

    @property
    def seconds_for_steps(self) -> float | None:
        """The seconds until which steps are done: the time budget without what it takes to finish the model.

        At least LEAST_STEPS of the seconds since the start, or since the run was resumed, are for steps, even if the
        model is then finished too late. None: the run has no time budget.
        """
        budget, begin = self.config.time_budget_s, min(self.begin_s, self.config.time_budget_s or 0.0)
        if budget is None:
            return None
        return max(budget - self.learner.seconds_to_finish, begin + LEAST_STEPS * (budget - begin))

    @property
    def seconds(self) -> float:
        """The seconds so far; several processes go by the clock of the main one, as it was at the last step."""
        return self.stopwatch.seconds if processes.count() == 1 else self.agreed_seconds

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1: of the time budget if there is one, else of the iterations."""
        return min(1.0, self.work_done / (self.seconds_for_steps or self.config.iters_num))

    @property
    def work_done(self) -> float:
        """Seconds of the time budget that are used if there is one, else the number of finished iterations."""
        budget = self.config.time_budget_s
        return self.iteration if budget is None else min(self.seconds, budget)

    def make_progress_bar(self) -> tqdm:
        """Return a progress bar over the seconds of the time budget if there is one, else over the iterations."""
        budget, name = self.config.time_budget_s, f"training {self.clip.name}"
        if budget is None:
            return tqdm(total=self.config.iters_num, initial=self.iteration, desc=name, unit="it")
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"
        return tqdm(total=budget, initial=min(self.stopwatch.seconds, budget), desc=name, bar_format=bar_format)

    # reports

    def log_terms(self, terms: dict[str, Tensor], events: "SummaryWriter", bar: tqdm) -> None:
        """Write the loss terms to the log, the events and the progress bar. Raises UserError if the loss is NaN."""
        row = self.write_log(terms)
        for name in ("total", *terms):
            events.add_scalar(f"Loss/{name}", row[name], self.iteration)
        if self.psnr is not None:
            quality = {"psnr": f"{self.psnr:.2f} dB"}
        else:  # Until the first evaluation the PSNR of the batch is shown.
            quality = {"psnr_of_batch": f"{row['psnr_of_batch']:.1f} dB" if "psnr_of_batch" in row else "unknown"}
        bar.set_postfix(loss=f"{row['total']:.1f}", **quality, refresh=False)

    def write_log(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Write the loss terms to the log, and return the new line. Raises UserError if the loss is NaN.

        The line has the PSNR of the batch, which follows from the colour term. This is the only place in the loop that
        waits for the device.
        """
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        total = sum(values.values())
        if not math.isfinite(total):
            raise self.divergence_error()
        row = {"iteration": self.iteration, "total": total, **values, "seconds": round(self.stopwatch.seconds, 3)}
        error = values.get("color", 0.0) / (3 * self.config.rgb_coeff) if self.config.rgb_coeff else 0.0
        if error > 0:
            row["psnr_of_batch"] = round(-10 * math.log10(error), 2)
        self.log.add(row)
        return row

    def write_evaluation(self, events: "SummaryWriter | None", is_last: bool) -> None:
        """Write the published outputs to a folder named after the iteration, and report them, if they are wanted.

        is_last: no step follows, so the memory for steps is given back before.
        """
        if events is None or not (self.with_evaluation and self.learner.is_whole):
            return
        if is_last:
            self.learner.release()
            give_back_memory()
        run = TrainedRun(self.model, self.clip, self.config.alpha_range == "full", self.checkpoint_path)
        with self.stopwatch.pause():
            evaluation = evaluate(run, self.evaluation_folder, is_full=self.config.full_evaluation)
        self.report_evaluation(evaluation, events)

    def report_evaluation(self, evaluation: Evaluation, events: "SummaryWriter") -> None:
        """Write an evaluation to the log, the preview, the plot of the losses and the events."""
        psnr = self.psnr = evaluation.metrics["psnr"]
        self.log.add({"iteration": self.iteration, "psnr": psnr, "seconds": round(self.stopwatch.seconds, 3)})
        preview = self.folder / "preview.png"
        write_preview(preview, evaluation.pictures, evaluation.atlases)
        if any("total" in row for row in self.log.rows):  # There is nothing to plot if no step was done.
            plot_training(self.folder / "curve.png", self.log.rows)
        events.add_scalar("Train/psnr", psnr, self.iteration)
        images = {f"Train/atlas{number}": atlas for number, atlas in enumerate(evaluation.atlases, 1)}
        images["Train/recon_frame_0"] = evaluation.pictures["first"]
        images["Train/recon_frame_end"] = evaluation.pictures["last"]
        images["Input/rgb_0"] = evaluation.pictures["first input"]
        for name, image in images.items():
            events.add_image(name, image, self.iteration, dataformats="HWC")
        tqdm.write(f"iteration {self.iteration}: PSNR {psnr:.2f} dB, wrote {evaluation.folder} and {preview}")

    # checkpoints

    def save(self) -> None:
        """Write the checkpoint: the published keys, and everything else that resuming needs.

        Of several processes, the main one writes it. Raises UserError, and keeps the last good checkpoint, if the model
        holds NaN.
        """
        if not processes.is_main():
            return
        if not all(torch.isfinite(parameter).all() for parameter in self.learner.parameters()):
            raise self.divergence_error()
        state: dict[str, Any] = self.learner.checkpoint() | {
            "iteration": self.iteration,
            "frames_used": self.learner.frames_used,
            "random_state": self.rng.get_state(),
            "seconds": self.stopwatch.seconds,
        }
        write_checkpoint(self.checkpoint_path, state)
        self.saved_iteration = self.iteration

    def restore(self, path: Path) -> dict[str, Any]:
        """Set weights, optimizer, iteration and random state from a checkpoint, and return the checkpoint.

        A published checkpoint has no random state; the random numbers of the config's seed are used instead. Raises
        UserError if the checkpoint cannot be used.
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
                self.rng.set_state(checkpoint["random_state"].cpu())
            except RuntimeError:
                warn(f"{path} was written on another kind of device; the random numbers of the seed are used")
        return checkpoint

    def divergence_error(self) -> UserError:
        """Return the error for a run whose loss or parameters are NaN or infinite."""
        return UserError(
            f"{self.folder}: the loss or the networks became NaN at iteration {self.iteration}; the last good "
            "checkpoint is kept. Lower learning_rate (grid_rate_* for grids) in the config"
        )
