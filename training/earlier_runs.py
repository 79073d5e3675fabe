"""Runs that are there already, so that nothing is trained twice on the same input."""

from dataclasses import replace
from pathlib import Path

import torch

from command_line import UserError, warn
from config import Config, ConfigError, load_config
from implicit_neural_networks import read_checkpoint
from masks.provenance import mask_note_path
from media.clip import mask_suffixes


def find_newest_run(config: Config) -> Path | None:
    """The last run in the results folder that began with these settings, whatever its time budget; None without."""
    results, name = Path(config.results_folder_name), Path(config.data_folder).name
    found = [path for path in results.iterdir() if path.name.startswith(f"{name}_")] if results.is_dir() else []
    for run in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if not all((run / each).is_file() for each in ("config.json", "checkpoint")):
            continue
        try:
            its_own = load_config(run / "config.json")
        except ConfigError as error:
            warn(f"passed over: {error}")
            continue
        is_same = replace(its_own, time_budget_s=config.time_budget_s) == config
        if is_same and (run / "config.json").stat().st_mtime >= inputs_changed_at(config) and is_whole(run):
            return run
    return None


def is_whole(run: Path) -> bool:
    """Whether a run's checkpoint can be read; says so if it can't."""
    try:
        read_checkpoint(run / "checkpoint", torch.device("cpu"))
    except UserError as error:
        warn(f"passed over: {error}")
        return False
    return True


def inputs_changed_at(config: Config) -> float:
    """When a clip's frames, masks, the note on these, or flow were last written, seconds."""
    frames = Path(config.data_folder)
    suffixes = ["", "_flow", *mask_suffixes(config.objects)]
    folders = [frames.with_name(f"{frames.name}{suffix}") for suffix in suffixes]
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    note = mask_note_path(frames.with_name(f"{frames.name}_maskrcnn"))
    return max(path.stat().st_mtime for path in [*files, *([note] if note.is_file() else [])])


def is_evaluated(run: Path, time_budget_s: float) -> bool:
    """Whether a run has been trained for so long, and evaluated after it."""
    checkpoint = read_checkpoint(run / "checkpoint", torch.device("cpu"))
    evaluated = run / f"{int(checkpoint.get('iteration', -1)):06d}" / "metrics.json"
    return float(checkpoint.get("seconds", 0)) >= time_budget_s and evaluated.is_file()


def last_evaluation(run: Path) -> Path:
    """The folder of a run's last evaluation."""
    return max(path.parent for path in run.glob("[0-9]*/metrics.json"))
