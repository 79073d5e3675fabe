"""The beginning of a run: a new one in a folder of its own, or one that continues from its last checkpoint."""

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment.pins import Pin, read_pins
from command_line import UserError, resolve_folder_name, warn
from config import Config, config_text, load_config
from masks.provenance import folder_fingerprint
from media import fresh_folder, list_images, write_text
from media.checkpoints import read_checkpoint
from parallel import processes
from training.log import Log
from training.loop import Trainer


@dataclass(frozen=True)
class Corrections:
    """What corrects a finished run."""

    strokes: Path | None = None  # folder of strokes, see `masks.strokes`
    pins: Path | None = None  # file of pins, see `alignment.pins`
    rigidity: dict[int, float] = field(default_factory=dict)  # factors of the rigidity of layers, by their index

    def __bool__(self) -> bool:
        return self.strokes is not None or self.pins is not None or bool(self.rigidity)


STROKES_NOTE = "strokes.json"  # File of a run that says which strokes it has had.
CORRECTION_BUDGET_S = 20.0  # Seconds of further training after strokes if no budget is given.


def scale_time_budget(config: Config, seconds_per_100_frames: float) -> Config:
    """Return a config whose time budget is so many seconds for every 100 frames of its clip."""
    folder, frames = resolve_folder_name(Path(config.data_folder)), config.maximum_number_of_frames
    if folder.is_dir():  # If it is not, the run cannot begin, which is said where the clip is opened.
        frames = min(len(list_images(folder)), frames)
    return replace(config, time_budget_s=max(1.0, seconds_per_100_frames * frames / 100))


def check_processes(config: Config) -> None:
    """Raise UserError if `torchrun` has started several processes for a run that only one can train."""
    if processes.count() > 1 and config.representation == "grid":
        raise UserError(
            f"{processes.count()} processes were started, but representation grid is trained by one; use plain python, "
            "and unwrap_many.py for many clips on many devices (docs/scale.md says why)"
        )


def start_run(config: Config, device: str | None = None) -> Trainer:
    """Begin a new run in a folder of its own, from the model's start or from the weights of `checkpoint_path`.

    Raises UserError, before anything is written, if the clip or the checkpoint cannot be used.
    """
    check_processes(config)
    # An error shows up before the clip is read, which takes longer.
    if config.load_checkpoint and "windowed_learner" in read_checkpoint(Path(config.checkpoint_path)):
        raise UserError(
            f"{config.checkpoint_path}: is of a long clip, whose windows lie beside it; continue it in its own "
            f"folder, with --resume {Path(config.checkpoint_path).parent}"
        )
    name = Path(config.data_folder).name
    timestamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(config.results_folder_name) / f"{name}_{timestamp}{config.add_to_experiment_folder_name}"
    trainer = Trainer(config, folder, device)
    if config.load_checkpoint:
        trainer.restore(Path(config.checkpoint_path))
        if trainer.is_finished:
            raise UserError(
                f"{config.checkpoint_path} holds iteration {trainer.iteration}, iters_num is {config.iters_num}; "
                "raise iters_num to train on"
            )
    if processes.is_main():
        trainer.folder = fresh_folder(folder)
        trainer.log = Log(trainer.folder / "log.jsonl")
        write_text(trainer.folder / "config.json", config_text(config))
        if config.strokes_folder:
            note_strokes(trainer.folder, Path(config.strokes_folder))
    print_start(trainer)
    if not config.load_checkpoint:
        with trainer.stop_signal.install():
            try:
                trainer.initialize()
            except KeyboardInterrupt:
                raise trainer.make_stop_error() from None
        trainer.save()
    return trainer


def resume_run(
    folder: Path,
    time_budget_s: float | None = None,
    device: str | None = None,
    corrections: Corrections | None = None,
    full_evaluation: bool | None = None,
) -> Trainer:
    """Return the run of a folder as it was at its last checkpoint.

    time_budget_s: seconds from the beginning of the run; None keeps the budget of its config. corrections: what
    corrects the run; then time_budget_s are seconds of further training. full_evaluation: as in the config; None keeps
    what its config says. Raises UserError if the folder does not hold a run that can be continued.
    """
    corrections = corrections or Corrections()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; --resume takes a folder that train.py wrote")
    if missing := [name for name in ("config.json", "checkpoint") if not (folder / name).is_file()]:
        raise UserError(f"{folder} has no {missing[0]}; --resume takes the folder of a run that train.py began")
    config = load_config(folder / "config.json")
    check_processes(config)
    saved = read_checkpoint(folder / "checkpoint")  # An error shows up before the clip is read, which takes longer.
    config = change_config(config, folder, saved, time_budget_s, corrections)
    if full_evaluation is not None:
        config = replace(config, full_evaluation=full_evaluation)
    trainer = Trainer(config, folder, device, in_windows="windowed_learner" in saved)
    pins = None
    if corrections.pins is not None:
        pins = read_pins(corrections.pins, trainer.clip.size, trainer.clip.objects + 1)
        print(f"{corrections.pins}: pins with places in two frames or more: {len(pins)}")
    checkpoint = trainer.restore(trainer.checkpoint_path)
    trainer.begin_s = float(checkpoint.get("seconds", 0.0))
    trainer.stopwatch.restore(trainer.begin_s)
    trainer.agree_on_time_and_stop()
    if processes.is_main():
        trainer.log.restore(trainer.iteration)
    correct_run(trainer, corrections, pins)
    trainer.psnr = next((row["psnr"] for row in reversed(trainer.log.rows) if "psnr" in row), None)
    print_start(trainer)
    if trainer.is_finished:
        warn_of_end(trainer)
    return trainer


def change_config(
    config: Config, folder: Path, saved: dict[str, Any], time_budget_s: float | None, corrections: Corrections
) -> Config:
    """Return the config with which the run of a folder goes on from its checkpoint; see `resume_run`.

    Raises UserError if the run cannot be corrected now.
    """
    if time_budget_s is not None:
        config = replace(config, time_budget_s=time_budget_s)
    # Strokes of the beginning are in the checkpoint.
    if not has_unstarted_windows(saved):  # These have not had their strokes yet.
        config = replace(config, strokes_folder="" if corrections.strokes is None else str(corrections.strokes))
    elif corrections:
        raise UserError(f"{folder}: some windows of its long clip are not started yet; continue it without corrections")
    if corrections:
        seconds = float(saved.get("seconds", 0.0)) + (time_budget_s or CORRECTION_BUDGET_S)
        config = replace(config, time_budget_s=seconds, iters_num=sys.maxsize)
        config = replace(config, layer_rigidity=turn_dials(config, corrections.rigidity))
    return config


def correct_run(trainer: Trainer, corrections: Corrections, pins: list[Pin] | None) -> None:
    """Correct a run that was read from its checkpoint, and save it. pins: see `Learner.mend`."""
    folder = trainer.folder
    if pins is not None or corrections.rigidity:
        trainer.learner.mend(pins, corrections.rigidity)
        trainer.save()  # Before the config: a run that is killed now is mended, or will be mended, once.
    if corrections.strokes is not None:
        trainer.learner.apply_strokes()
        trainer.save()  # Before the note: a run that is killed now has the strokes, or will get them.
        note_strokes(folder, corrections.strokes)
    if corrections.rigidity:
        saved_config = replace(load_config(folder / "config.json"), layer_rigidity=trainer.config.layer_rigidity)
        write_text(folder / "config.json", config_text(saved_config))
    trainer.is_corrected = bool(corrections)


def warn_of_end(trainer: Trainer) -> None:
    """Warn that a run is finished already, and say how it goes on."""
    if not trainer.learner.is_whole:
        warn(
            f"the time of {trainer.folder} is used up, so the windows that are left are started and not trained; a "
            "larger --time_budget trains them"
        )
        return
    spent = f"{trainer.stopwatch.seconds:.0f} s and {trainer.iteration} iterations"
    warn(
        f"{trainer.folder} is finished after {spent}; continue it with a --time_budget above these seconds, or raise "
        "iters_num in its config.json"
    )


def has_unstarted_windows(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is of a long clip that was stopped before all of its windows were started."""
    state = checkpoint.get("windowed_learner")
    return state is not None and len(state["layers"]) < len(state["spans"])


def turn_dials(config: Config, rigidity: dict[int, float]) -> tuple[float, ...]:
    """Return the factors of rigidity of all layers, after some are multiplied, by their index.

    Raises UserError for a layer that the run does not have.
    """
    layers = config.objects + 1
    if unknown := [layer for layer in rigidity if not 0 <= layer < layers]:
        raise UserError(
            f"--rigidity {unknown[0] + 1}: the run has {layers} layers, 1 to {layers}, the front object first and the "
            "background last"
        )
    factors = [*config.layer_rigidity, *[1.0] * layers][:layers]
    return tuple(factor * rigidity.get(layer, 1.0) for layer, factor in enumerate(factors))


def note_strokes(run: Path, strokes: Path) -> None:
    """Note beside a run which strokes it has had, so that the same ones are not applied twice."""
    write_text(run / STROKES_NOTE, json.dumps({"fingerprint": folder_fingerprint(strokes)}) + "\n")


def has_had_strokes(run: Path, strokes: Path) -> bool:
    """Return whether the last strokes of a run were these, unchanged."""
    try:
        note = json.loads((run / STROKES_NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(note, dict) and note.get("fingerprint") == folder_fingerprint(strokes)


def print_start(trainer: Trainer) -> None:
    """Print what was loaded and where the run writes."""
    clip = trainer.clip
    print(f"{clip.folder}: {len(clip)} frames of {clip.width} x {clip.height}, on {trainer.device}")
    if (count := len(list_images(clip.folder))) > len(clip):
        warn(f"the clip has {count} frames, the first {len(clip)} are used; raise maximum_number_of_frames for more")
    config = trainer.config
    end = f"{config.time_budget_s:g} s" if config.time_budget_s is not None else f"iteration {config.iters_num}"
    print(f"training from iteration {trainer.iteration} until {end}; writing to {trainer.folder}", flush=True)
