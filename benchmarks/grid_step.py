"""Measure what a step of training with grids spends its time on, operator by operator.

python benchmarks/grid_step.py                   draws a clip of 768 x 432, about 2 minutes on 2 cores
python benchmarks/grid_step.py --clip data/NAME  a clip with masks and flow

Printed are, for each resolution of training, the seconds per step on all cores, and the milliseconds of each kind of
operator on one core. Reading the atlases, the derivatives of that, and the matrix products that interpolate fields are
what a step cannot do without in this form: their sum is the floor. Nothing else should run meanwhile.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.busy import STAGES, draw_clip, start_trainer, steps_per_second
from command_line import UserError, run_script

if TYPE_CHECKING:
    from training.loop import Trainer

KINDS = {  # names of torch's operators by what they do here
    "reading atlases": ("aten::grid_sampler_2d",),
    "their derivatives": ("aten::grid_sampler_2d_backward",),
    "interpolating fields": ("aten::bmm", "aten::mm"),
}
FLOOR = tuple(KINDS)
OTHERS = "element by element, and the rest"
WARM_UP = 3  # steps before anything is measured


def main(arguments: list[str] | None = None) -> None:
    """Measure each stage, and print one table."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--clip", type=Path, help="folder of a clip's frames, with masks and flow beside it")
    flags.add_argument("--seconds", type=float, default=5, help="seconds for each resolution (default: 5)")
    options = flags.parse_args(arguments)
    if options.seconds <= 0:
        raise UserError(f"--seconds is {options.seconds:g}, expected more than 0")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = start_trainer(options.clip or draw_clip(Path(scratch)), Path(scratch))
        columns = {stage: measure_stage(trainer, progress, options.seconds) for stage, progress in STAGES.items()}
    print(make_table(columns))


def measure_stage(trainer: "Trainer", progress: float, seconds: float) -> dict[str, float]:
    """Return the seconds per step on all cores, and the milliseconds of each kind of operator on one core."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from parallel.side_by_side import Cores

    learner: Any = trainer.learner  # of grids
    for step in range(WARM_UP):
        learner.step(step, progress)
    column = {"s per step, all cores": 1 / steps_per_second(trainer, progress, seconds)}
    cores, learner.cores = learner.cores, Cores(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            begin, steps = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                learner.step(steps, progress)
                steps += 1
    finally:
        learner.cores = cores
        torch.set_num_threads(threads)
    times = {event.key: event.self_cpu_time_total / 1000 / steps for event in profiler.key_averages()}
    column |= {kind: sum(times.get(name, 0.0) for name in names) for kind, names in KINDS.items()}
    column[OTHERS] = sum(times.values()) - sum(column[kind] for kind in KINDS)
    column["times the floor"] = sum(times.values()) / sum(column[kind] for kind in FLOOR)
    return column


def make_table(columns: dict[str, dict[str, float]]) -> str:
    """Return the figures as a table in Markdown: a row for each figure, a column for each stage."""
    rows = next(iter(columns.values()))
    lines = ["| ms per step on one core | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in rows:
        digits = 1 if name in (*KINDS, OTHERS) else 3 if name.startswith("s per") else 2
        lines.append(f"| {name} | " + " | ".join(f"{column[name]:.{digits}f}" for column in columns.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
