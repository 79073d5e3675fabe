"""Measure how much of training's speed remains beside another process that keeps a core busy.

python benchmarks/busy.py                  draws a clip of 768 x 432, about 4 minutes on 2 cores
python benchmarks/busy.py --clip data/NAME  a clip with masks and flow

Printed are the seconds of the start and the steps per second at each resolution: alone, beside one busy process of
normal priority, and beside one of the lowest priority. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from command_line import UserError, run_script

if TYPE_CHECKING:
    from training.loop import Trainer

SIZE, FRAMES = (768, 432), 40  # Size and number of frames of the drawn clip.
STAGES = {"a quarter": 0.0, "a half": 0.3, "full": 0.8}  # Progress of a run at each resolution of training.
# Niceness that is added to the process beside the run.
CONDITIONS: dict[str, int | None] = {"alone": None, "normal priority": 0, "lowest priority": 19}
BUSY_LOOP = "while True: pass"


def main(arguments: list[str] | None = None) -> None:
    """Measure under each condition, and print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--clip", type=Path, help="folder of a clip's frames, with masks and flow beside it")
    flags.add_argument("--seconds", type=float, default=10, help="seconds for each resolution (default: 10)")
    options = flags.parse_args(arguments)
    if options.seconds <= 0:
        raise UserError(f"--seconds is {options.seconds:g}, expected more than 0")
    with tempfile.TemporaryDirectory() as scratch:
        clip = options.clip or draw_clip(Path(scratch))
        results = {
            name: measure(clip, Path(scratch), niceness, options.seconds) for name, niceness in CONDITIONS.items()
        }
    print(table(results))


def draw_clip(folder: Path) -> Path:
    """Draw the clip and compute its flow; return the folder of its frames."""
    from benchmarks.data import prepare_scene

    return prepare_scene("pan", SIZE, FRAMES, folder)


def measure(clip: Path, scratch: Path, niceness: int | None, seconds: float) -> dict[str, float]:
    """Return the seconds of the start and the steps per second of each stage, beside a process of this niceness."""
    import training.loop  # noqa: F401, so that loading torch does not count for the first start

    with busy_process(niceness):
        begin = time.perf_counter()
        trainer = start_trainer(clip, scratch)
        speeds = {"start, s": time.perf_counter() - begin}
        for stage, progress in STAGES.items():
            trainer.learner.step(0, progress)  # What is done once per stage does not count.
            speeds[stage] = steps_per_second(trainer, progress, seconds)
    return speeds


@contextmanager
def busy_process(niceness: int | None) -> Iterator[None]:
    """Keep one core busy with a process of this added niceness; None: no process."""
    if niceness is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.nice({niceness})\n{BUSY_LOOP}"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def start_trainer(clip: Path, scratch: Path) -> "Trainer":
    """Return a trainer of config/fast.json after its start."""
    from config import load_config
    from training.loop import Trainer

    config = replace(
        load_config(ROOT / "config" / "fast.json"), data_folder=str(clip), resx=SIZE[0], resy=None, time_budget_s=None
    )
    trainer = Trainer(config, scratch, "cpu")
    trainer.initialize()
    return trainer


def steps_per_second(trainer: "Trainer", progress: float, seconds: float) -> float:
    """Return the steps per second at this progress of a run, measured for so many seconds."""
    begin, steps = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        trainer.learner.step(steps, progress)
        steps += 1
    return steps / elapsed


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the figures of all conditions as a table in Markdown, with the share of the speed that remains."""
    from parallel.side_by_side import count_cores

    alone = results["alone"]
    lines = [f"{count_cores()} cores\n", "| beside one busy process | " + " | ".join(alone) + " |"]
    lines.append("|---|" + "---|" * len(alone))
    for name, speeds in results.items():
        cells = [
            f"{value:.1f}" if stage == "start, s" else f"{value:.2f} ({100 * value / alone[stage]:.0f} %)"
            for stage, value in speeds.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
