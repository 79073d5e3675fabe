"""One clip of many: unwrap_video.py in a process of its own, what came of it, and how it goes on after a crash."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import media
from batches.manifest import ClipTask
from command_line import UserError

ROOT = Path(__file__).resolve().parent.parent
STATE, RUNNING, LOG = "state.json", "running.json", "log.txt"  # files in the folder of a clip
DONE, FAILED = "done", "failed"
WRONG_INPUT = 2  # Exit code of wrong input, which another attempt does not change.
PATIENCE_S = 60.0  # Seconds in which a process that nobody waits for any more has to end.
HEED_S = 10.0  # Seconds in which a process has to heed Ctrl-C.
POLL_S = 0.2


@dataclass(frozen=True)
class ClipResult:
    """What came of a clip."""

    name: str
    fingerprint: str  # of its task
    status: str  # DONE or FAILED
    attempts: int
    seconds: float
    core_seconds: float | None  # None where the system does not tell
    peak_mb: float | None
    message: str  # the last line that was printed
    run: str | None = None  # folder of the run, from the folder of the clip
    metrics: dict[str, Any] | None = None  # numbers in metrics.json of its evaluation


def run_clip(
    task: ClipTask,
    folder: Path,
    threads: int,
    retries: int,
    cores: Collection[int] = (),
    is_stopped: Callable[[], bool] = lambda: False,
) -> ClipResult:
    """Unwrap a clip in `folder`, and write what came of it into its state.json.

    threads: of its operators. A crash is tried again, `retries` times; what was finished before it is used. cores:
    numbers of those that it may use; none: all. is_stopped: whether to end soon, as after Ctrl-C; then the state is not
    written, so that the next call goes on.
    """
    media.make_folder(folder)
    result = ClipResult(task.name, task.fingerprint(), FAILED, 0, 0.0, 0.0, 0.0, "")
    try:
        end_abandoned_process(folder)
        for _ in range(1 + retries):
            result, code = run_once(task, folder, threads, cores, result, is_stopped)
            if code in (0, WRONG_INPUT) or is_stopped():
                break
    except UserError as error:  # Another program works on it, and says what came of it.
        return replace(result, message=str(error))
    if result.status == DONE:
        result = read_outcome(result, folder)
    if not is_stopped():
        media.write_text(folder / STATE, json.dumps(asdict(result), indent=2) + "\n")
    return result


def run_once(
    task: ClipTask,
    folder: Path,
    threads: int,
    cores: Collection[int],
    before: ClipResult,
    is_stopped: Callable[[], bool],
) -> tuple[ClipResult, int]:
    """Run unwrap_video.py once. Returns what came of it, added to the attempts before, and its exit code."""
    command = [sys.executable, str(ROOT / "unwrap_video.py"), str(task.source), *task.flags]
    command += [f"--data_folder={folder / 'data'}", f"--results_folder={folder / 'results'}"]
    command += [] if task.source.is_dir() else [f"--name={task.name}"]
    started = time.perf_counter()
    with (folder / LOG).open("ab") as log:
        log.write(f"\n# {time.strftime('%Y-%m-%d %H:%M:%S')}  unwrap_video.py {task.source}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # A Ctrl-C in the terminal reaches it once, from here.
        )
    keep_to_cores(process.pid, cores)
    note = {"host": socket.gethostname(), "pid": process.pid, "parent": os.getpid()}
    media.write_text(folder / RUNNING, json.dumps(note) + "\n")
    code, core_seconds, peak_mb = wait_for(process, is_stopped)
    (folder / RUNNING).unlink(missing_ok=True)
    result = replace(
        before,
        status=DONE if code == 0 else FAILED,
        attempts=before.attempts + 1,
        seconds=before.seconds + time.perf_counter() - started,
        core_seconds=None if core_seconds is None else (before.core_seconds or 0) + core_seconds,
        peak_mb=None if peak_mb is None else max(before.peak_mb or 0, peak_mb),
        message=last_line(folder / LOG) if code >= 0 else f"was ended by signal {-code}: {last_line(folder / LOG)}",
    )
    return result, code


def keep_to_cores(pid: int, cores: Collection[int]) -> None:
    """Let a process run on some cores only; without any, and where the system cannot do it, it may use all."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    with suppress(ProcessLookupError):  # It has ended already.
        os.sched_setaffinity(pid, cores)


def wait_for(
    process: subprocess.Popen[bytes], is_stopped: Callable[[], bool]
) -> tuple[int, float | None, float | None]:
    """Wait until a process ends; it is stopped as Ctrl-C does once `is_stopped` returns True.

    Returns its exit code (negative: a signal), the seconds of all its cores, and its largest memory in MB.
    """
    # Where Ctrl-C is ignored, as in the background of a shell script, the second signal ends it.
    signals = [signal.SIGTERM] if os.name == "nt" else [signal.SIGINT, signal.SIGTERM]
    next_signal_at = 0.0
    while True:
        if signals and is_stopped() and time.monotonic() >= next_signal_at:
            process.send_signal(signals.pop(0))
            next_signal_at = time.monotonic() + HEED_S
        if hasattr(os, "wait4"):
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB elsewhere
                return process.returncode, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit
        elif process.poll() is not None:
            return process.returncode, None, None
        time.sleep(POLL_S)


def end_abandoned_process(folder: Path) -> None:
    """End the process that works on a clip, if the program that started it is gone. It keeps what it has finished.

    Raises UserError if that program is still there.
    """
    try:
        note = json.loads((folder / RUNNING).read_text(encoding="utf-8"))
        host, pid, parent = note["host"], int(note["pid"]), int(note["parent"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if host == socket.gethostname() and is_alive(pid):
        if is_alive(parent) and parent != os.getpid():
            raise UserError(f"{folder}: process {parent} works on this clip; wait for it, or end it")
        end = time.monotonic() + PATIENCE_S
        os.kill(pid, signal.SIGTERM)
        while is_alive(pid) and time.monotonic() < end:
            time.sleep(POLL_S)
    (folder / RUNNING).unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Return whether a process runs on this computer; on Windows, where asking would end it, False."""
    if os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or ") Z " not in state.read_text()  # Zombies have ended.
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True


def read_outcome(result: ClipResult, folder: Path) -> ClipResult:
    """Return a result with the newest run of the clip and the metrics of its last evaluation."""
    found = sorted((folder / "results").glob("*/*/metrics.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        return replace(result, status=FAILED, message="unwrap_video.py left no evaluation; see its log")
    values = json.loads(found[-1].read_text(encoding="utf-8"))
    metrics = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return replace(result, run=found[-1].parents[1].relative_to(folder).as_posix(), metrics=metrics)


def read_state(task: ClipTask, folder: Path) -> ClipResult | None:
    """Return what came of a clip before; None if it was not tried, or if its task has changed since."""
    try:
        result = ClipResult(**json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return result if result.fingerprint == task.fingerprint() else None


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))
    told = [line.strip() for line in lines if line.strip() and "%|" not in line]
    return told[-1] if told else ""
