"""Measure the whole way from a video to paint: seconds and memory of every script that a user runs.

python benchmarks/whole_way.py swan.mp4                        this code, about 4 minutes on 2 cores for 70 frames
python benchmarks/whole_way.py swan.mp4 --code ../before .     two versions of the code, one after the other
python benchmarks/whole_way.py swan.mp4 --busy                 beside a process that keeps one core busy

Masks are found by motion. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.busy import busy_process
from command_line import UserError, run_script

FIRST_PICTURE = "wrote a preview after"  # Beginning of the line that train.py prints.
POLL_S = 0.1  # Seconds between two looks for the first checkpoint.


@dataclass
class Measured:
    """The seconds and the peak memory of one script, in MB."""

    seconds: float
    memory_mb: float


def main(arguments: list[str] | None = None) -> None:
    """Run all scripts with each version of the code, and print one table."""
    options = make_parser().parse_args(arguments)
    if not options.video.is_file():
        raise UserError(f"{options.video}: no such file; give a video")
    for code in options.code:
        if not (code / "unwrap_video.py").is_file():
            raise UserError(f"{code} has no unwrap_video.py; give the folder of a version of this project")
    columns = {}
    with busy_process(0 if options.busy else None):
        for code in options.code:
            with tempfile.TemporaryDirectory() as scratch:
                columns[str(code)] = measure_way(code.resolve(), options.video.resolve(), Path(scratch), options)
    print(f"{'beside a busy process' if options.busy else 'alone'}, --time_budget {options.time_budget:g}\n")
    print(make_table(columns))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("video", type=Path, help="a video file")
    flags.add_argument("--time_budget", type=float, default=60, help="of unwrap_video.py, seconds (default: 60)")
    flags.add_argument("--code", type=Path, nargs="+", default=[ROOT], help="versions of the code (default: this one)")
    flags.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    return flags


def measure_way(code: Path, video: Path, scratch: Path, options: argparse.Namespace) -> dict[str, str]:
    """Run the scripts of one version of the code one after the other, and return the cells of its column."""
    folder = ["--data_folder", str(scratch / "data"), "--results_folder", str(scratch / "results")]
    unwrap = [str(video), "--method", "motion", "--time_budget", f"{options.time_budget:g}", *folder]
    first: dict[str, float] = {}
    cells = {"unwrap_video.py": run_measured(code, "unwrap_video.py", unwrap, scratch, first)}
    (run,) = (scratch / "results").iterdir()
    quality: dict[str, str] = {}
    if evaluations := sorted(run.glob("[0-9]*/metrics.json")):  # Their folders are named after the number of steps.
        psnr = json.loads(evaluations[-1].read_text(encoding="utf-8"))["psnr"]
        quality = {"steps of training": f"{int(evaluations[-1].parent.name)}", "PSNR": f"{psnr:.1f} dB"}
    trained, atlas = f"--trained_model_folder={run}", scratch / "atlas"
    steps: list[tuple[str, str, list[str]]] = [
        ("only_evaluate.py", "only_evaluate.py", [f"--output_folder={scratch / 'evaluation'}"]),
        ("export_atlas.py", "export_atlas.py", [f"--output_folder={atlas}"]),
        (
            "export_layers.py: foreground, background, alpha",
            "export_layers.py",
            [
                f"--output_folder={scratch / 'layers'}",
                f"--atlas={atlas}",
                "--kinds",
                "foreground",
                "background",
                "alpha",
            ],
        ),
        (
            "only_edit.py, native size",
            "only_edit.py",
            [
                f"--output_folder={scratch / 'edited'}",
                f"--atlas={atlas}",
                f"--edit_foreground_path={atlas / 'foreground_guide.png'}",
                "--edit_space=native",
            ],
        ),
    ]
    for name, script, flags in steps:
        cells[name] = run_measured(code, script, [trained, *flags], scratch)
    times = {f"first {name}": f"after {seconds:.0f} s" for name, seconds in first.items()}
    return times | quality | {name: f"{each.seconds:.0f} s, {each.memory_mb:.0f} MB" for name, each in cells.items()}


def run_measured(
    code: Path, script: str, arguments: list[str], scratch: Path, first: dict[str, float] | None = None
) -> Measured:
    """Run a script and return what it took. Raises UserError if it fails.

    first: takes the seconds until the first picture and until the first checkpoint, which can be edited.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", str(code / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None  # It is a pipe.
    lines: list[tuple[float, str]] = []
    reader = threading.Thread(target=collect_lines, args=(process.stdout, lines, begin))
    reader.start()
    while first is not None and reader.is_alive() and "paintable result" not in first:
        if any(scratch.glob("results/*/checkpoint")):
            first["paintable result"] = time.perf_counter() - begin
        time.sleep(POLL_S)
    reader.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode, seconds = os.waitstatus_to_exitcode(status), time.perf_counter() - begin
    if process.returncode:
        raise UserError(f"{script} of {code} failed; run it by hand to see why")
    if first is not None:
        first |= {"picture": next((at for at, line in lines if line.startswith(FIRST_PICTURE)), float("nan"))}
    return Measured(seconds, usage.ru_maxrss / 1024)


def collect_lines(stream: Iterable[str], lines: list[tuple[float, str]], begin: float) -> None:
    """Append each line of a stream, and the seconds since `begin` at which it came."""
    for line in stream:
        lines.append((time.perf_counter() - begin, line))


def make_table(columns: dict[str, dict[str, str]]) -> str:
    """Return the cells of all versions of the code as a table in Markdown."""
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(cells.get(name, "-") for cells in columns.values()) + " |" for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
