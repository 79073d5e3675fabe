"""Finding earlier runs, so that the same input is not trained twice."""

from dataclasses import replace
from pathlib import Path

import torch

from command_line import UserError, warn
from config import Config, ConfigError, load_config
from masks.provenance import mask_note_path
from media.checkpoints import read_checkpoint
from media.clip import mask_suffixes
from media.images import list_images


def find_newest_run(config: Config) -> Path | None:
    """Return the newest run in the results folder that has this config; None without one.

    The time budget, the folder of strokes, what evaluations write, and a largest number of frames that leaves the same
    frames, may differ. A run counts only if its checkpoint can be read and the clip has not changed since it began.
    """
    results, name = Path(config.results_folder_name), Path(config.data_folder).name
    runs = [path for path in results.iterdir() if path.name.startswith(f"{name}_")] if results.is_dir() else []
    count = len(list_images(Path(config.data_folder)))
    for run in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        if not all((run / file_name).is_file() for file_name in ("config.json", "checkpoint")):
            continue
        try:
            run_config = load_config(run / "config.json")
        except ConfigError as error:
            warn(f"skipped an earlier run: {error}")
            continue
        may_differ = {name: getattr(config, name) for name in ("time_budget_s", "strokes_folder", "full_evaluation")}
        if min(run_config.maximum_number_of_frames, count) == min(config.maximum_number_of_frames, count):
            may_differ["maximum_number_of_frames"] = config.maximum_number_of_frames
        is_same = replace(run_config, **may_differ) == config
        is_newer = (run / "config.json").stat().st_mtime >= input_time(config)
        if is_same and is_newer and has_readable_checkpoint(run):
            return run
    return None


def has_readable_checkpoint(run: Path) -> bool:
    """Return whether the checkpoint of a run can be read, and warn if it cannot."""
    try:
        read_checkpoint(run / "checkpoint", torch.device("cpu"))
    except UserError as error:
        warn(f"skipped an earlier run: {error}")
        return False
    return True


def input_time(config: Config) -> float:
    """Return when the clip's input was last written, in seconds since the epoch.

    The input is the frames, the masks, the note on the origin of the masks, and the flow.
    """
    frames = Path(config.data_folder)
    suffixes = ["", "_flow", *mask_suffixes(config.objects)]
    folders = [frames.with_name(f"{frames.name}{suffix}") for suffix in suffixes]
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
    note = mask_note_path(frames.with_name(f"{frames.name}_maskrcnn"))
    return max(path.stat().st_mtime for path in [*files, *([note] if note.is_file() else [])])


def is_evaluated(run: Path, time_budget_s: float) -> bool:
    """Return whether a run was trained for at least this many seconds and evaluated at its last iteration."""
    checkpoint = read_checkpoint(run / "checkpoint", torch.device("cpu"))
    metrics_path = run / f"{int(checkpoint.get('iteration', -1)):06d}" / "metrics.json"
    return float(checkpoint.get("seconds", 0)) >= time_budget_s and metrics_path.is_file()


def last_evaluation(run: Path) -> Path:
    """Return the folder of a run's last evaluation."""
    return max(path.parent for path in run.glob("[0-9]*/metrics.json"))
