"""Measure the quality of every config on every clip within every time budget, and write one table.

python benchmarks/run.py                 two easy scenes at 384 x 216, 60 and 180 s: about 15 minutes on 2 cores
python benchmarks/run.py --scenes pan bend turn fast light cross --size 768 432 --budgets 60 180 600
python benchmarks/run.py --clips FOLDER  also every clip in FOLDER that has masks (NAME, NAME_maskrcnn, NAME_gt)
python benchmarks/run.py --clips FOLDER --points FOLDER  also compares with hand-placed points (CLIP.npz, CLIP.json)

A budget counts loading and training, but not flow and masks. Finished cases are kept: the same command continues a
benchmark that was stopped.
"""

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import UserError, run_script

DEFAULT_SCENES = ("pan", "bend")
DEFAULT_SIZE_PX = (384, 216)  # Width and height.
DEFAULT_FRAMES = 50
DEFAULT_BUDGETS_S = (60.0, 180.0)


@dataclass(frozen=True)
class Case:
    """One clip, trained with one config within one time budget."""

    clip: str
    config: Path
    budget_s: float

    @property
    def name(self) -> str:
        """Name of the case's folder."""
        return f"{self.clip}_{self.config.stem}_{self.budget_s:g}s"


def main(arguments: list[str] | None = None) -> None:
    """Run the cases without a result, then write the table and the plot.

    arguments: of the command line; None takes those of the process. Raises UserError for wrong input.
    """
    options = make_benchmark_parser().parse_args(arguments)
    if options.worker:
        from benchmarks.case import run_case

        run_case(json.loads(options.worker))
        return
    from benchmarks.data import prepare_clip, prepare_scene
    from benchmarks.table import write_results
    from benchmarks.tracks import PointFolder

    if options.points:
        PointFolder(options.points)  # An error shows up before hours of training.
    output, size = options.output, tuple(options.size)
    output.mkdir(parents=True, exist_ok=True)
    folders = {name: prepare_scene(name, size, options.frames, output / "data") for name in options.scenes}
    folders |= {
        folder.name: folder
        for folder in (
            prepare_clip(path, output / "data", options.true_masks)
            for path in find_clips(options.clips, options.clip_names, "_gt" if options.true_masks else "_maskrcnn")
        )
    }
    cases = [Case(clip, config, budget) for clip in folders for config in options.configs for budget in options.budgets]
    for number, case in enumerate(cases, 1):
        folder = output / case.name
        if (folder / "result.json").is_file():
            print(f"[{number} of {len(cases)}] {case.name}: has a result, skipped", flush=True)
            continue
        print(f"[{number} of {len(cases)}] {case.name}", flush=True)
        task = {
            "clip": case.clip,
            "folder": str(folders[case.clip]),
            "config": str(case.config),
            "budget_s": case.budget_s,
            "output": str(folder),
            "points": str(options.points) if options.points else None,
            "scene": [*size, options.frames] if case.clip in options.scenes else None,
        }
        subprocess.run([sys.executable, str(Path(__file__)), "--worker", json.dumps(task)], check=True)
    print(f"wrote {write_results(output, describe_machine())}")


def make_benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--scenes", nargs="*", default=list(DEFAULT_SCENES), help="names of exact scenes")
    flags.add_argument("--clips", type=Path, help="folder of clips, each with NAME_maskrcnn beside it")
    flags.add_argument("--clip_names", nargs="*", help="use only these clips of the folder")
    flags.add_argument(
        "--true_masks", action="store_true", help="give the clips their true masks, as masks that somebody brought"
    )
    flags.add_argument(
        "--points",
        type=Path,
        help="folder of hand-placed points, see benchmarks/tracks.py; finished cases are not measured again",
    )
    flags.add_argument("--configs", nargs="+", type=Path, default=[ROOT / "config" / "fast.json"])
    flags.add_argument("--budgets", nargs="+", type=float, default=list(DEFAULT_BUDGETS_S), help="seconds")
    flags.add_argument(
        "--size", nargs=2, type=int, default=list(DEFAULT_SIZE_PX), help="width and height of the scenes"
    )
    flags.add_argument("--frames", type=int, default=DEFAULT_FRAMES, help="frames of the scenes")
    flags.add_argument("--output", type=Path, default=Path("benchmarks_out"))
    flags.add_argument("--worker", help=argparse.SUPPRESS)
    return flags


def find_clips(folder: Path | None, names: list[str] | None, suffix: str = "_maskrcnn") -> list[Path]:
    """Return the frame folders in `folder` that have masks beside them, in a folder NAME and suffix.

    names: only these; None takes all.

    Raises UserError if the folder or one of the named clips does not exist.
    """
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of clips")
    clips = {path.name: path for path in sorted(folder.iterdir()) if path.with_name(path.name + suffix).is_dir()}
    if unknown := [name for name in names or [] if name not in clips]:
        raise UserError(f"{folder} has no clip {unknown[0]!r} with masks; there are: {', '.join(clips)}")
    return [clips[name] for name in names or clips]


def describe_machine() -> str:
    """Return a description of the machine and the software for the table."""
    import os

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores, no GPU"
    return f"{device}; Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    run_script(main)
