"""Unwrap many clips: side by side on this computer, on a Ray cluster, or as a Slurm array, with one table of all."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import Stopped, UserError, make_parser, quote, run_script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batches.clip_job import ClipResult
    from batches.manifest import ClipTask

DEFAULT_CORES = 2  # Cores of a clip, unless --workers says how many clips share them.
SLURM_SCRIPT = "unwrap_array.sh"


def main(arguments: list[str] | None = None) -> None:
    """Unwrap the clips of a list that are not done yet, and write the table. Raises UserError if some failed."""
    options = make_many_parser().parse_args(arguments)
    check_flags(options)

    import media
    from batches.clip_job import DONE, read_state
    from batches.engines import write_slurm_script
    from batches.manifest import read_tasks
    from batches.table import write_tables
    from parallel.side_by_side import count_cores

    tasks = read_tasks(options.clips, options.set)
    output = media.make_folder(options.output_folder)
    workers = options.workers or max(1, count_cores() // DEFAULT_CORES)
    if options.slurm:
        settings = [f"--set={each}" for each in options.set] + [f"--retries={options.retries}"]
        write_slurm_script(output / SLURM_SCRIPT, options.clips, output, len(tasks), workers, settings)
        print(f"wrote {output / SLURM_SCRIPT} for {len(tasks)} clips; begin with sbatch {quote(output / SLURM_SCRIPT)}")
        print("the same command without --slurm does what is left, and writes the table")
        return
    chosen = tasks if options.only is None else choose_task(tasks, options.only)
    states = {task.name: read_state(task, output / task.name) for task in tasks}
    left = [task for task in chosen if (state := states[task.name]) is None or state.status != DONE]
    if done := len(chosen) - len(left):
        print(f"{done} of {len(chosen)} clips are done already")
    for result in unwrap(options, left, output, workers):
        states[result.name] = result
        known = [state for state in states.values() if state is not None]
        if options.only is None:  # The tasks of an array would write over each other's table.
            write_tables(output, known, [name for name, state in states.items() if state is None])
    results = [state for task in chosen if (state := states[task.name]) is not None]
    if options.only is None:
        page = write_tables(output, results, [name for name, state in states.items() if state is None])
        print(f"wrote {page} and {output / 'clips.csv'}")
    failed = [result for result in results if result.status != DONE]
    for result in failed:
        print(f"{result.name}: {result.message}")
    if failed:
        raise UserError(f"{len(failed)} of {len(chosen)} clips failed, see above; the same command tries them again")


def make_many_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = make_parser(
        "Unwrap many clips. What is done is not done again, so the same command goes on after any interruption.\n"
        "A clip that fails says why and stops nobody; an input that does not exist is named before anything begins.\n"
        "Each clip gets a folder; index.html shows all of them.",
        "python unwrap_many.py clips.csv --output_folder unwrapped --workers 4",
    )
    flags.add_argument(
        "clips",
        type=Path,
        help="a CSV with a column input (a video or a folder of frames) and, as you like, name and flags of "
        "unwrap_video.py such as class_name; or a folder of videos and folders of frames",
    )
    flags.add_argument("--output_folder", type=Path, required=True, help="for the clips and the table; made if absent")
    flags.add_argument(
        "--workers", type=int, help=f"clips that are worked on at a time (default: one for {DEFAULT_CORES} cores)"
    )
    flags.add_argument("--retries", type=int, default=1, help="attempts after a crash (default: 1)")
    flags.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="a flag of unwrap_video.py for all clips that say nothing else, such as time_budget=60",
    )
    flags.add_argument("--only", type=int, metavar="N", help="unwrap only the N-th clip, counted from 0")
    flags.add_argument(
        "--ray", metavar="ADDRESS", help="use a Ray cluster: HOST:PORT of its head, or local (pip install ray)"
    )
    flags.add_argument("--slurm", action="store_true", help="write a script for a Slurm array instead of working")
    return flags


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for values out of range and for flags that do not belong together."""
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers is {options.workers}, expected at least 1")
    if options.retries < 0:
        raise UserError(f"--retries is {options.retries}, expected at least 0")
    if options.slurm and (options.ray or options.only is not None):
        raise UserError("--slurm writes a script, and neither --ray nor --only has a meaning there; leave them out")


def choose_task(tasks: "Sequence[ClipTask]", number: int) -> "list[ClipTask]":
    """Return the task of a number. Raises UserError if there is none."""
    if not 0 <= number < len(tasks):
        raise UserError(f"--only is {number}, expected 0 to {len(tasks) - 1}")
    return [tasks[number]]


def unwrap(
    options: argparse.Namespace, tasks: "Sequence[ClipTask]", output: Path, workers: int
) -> "Iterator[ClipResult]":
    """Yield the results of clips with a progress bar. Raises Stopped after Ctrl-C; then clips go on the next time."""
    from tqdm import tqdm

    from batches.clip_job import FAILED
    from batches.engines import run_locally, run_on_ray
    from parallel.side_by_side import count_cores

    workers = max(1, min(workers, len(tasks)))
    threads, failed = max(1, count_cores() // workers), 0
    if options.ray:
        threads = DEFAULT_CORES
        results = run_on_ray(tasks, output, options.ray, workers, threads, options.retries)
    else:
        results = run_locally(tasks, output, workers, threads, options.retries)
    bar = tqdm(total=len(tasks), desc="clips", unit="clip")
    try:
        for result in results:
            failed += result.status == FAILED
            bar.set_postfix(failed=failed, last=result.name)
            bar.update()
            yield result
    except KeyboardInterrupt:
        raise Stopped(
            "stopped by Ctrl-C; each clip keeps what it has finished, and the same command goes on", 130
        ) from None
    finally:
        bar.close()


if __name__ == "__main__":
    run_script(main)
