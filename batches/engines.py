"""Where clips are unwrapped: in processes of this computer, on a Ray cluster, or as a Slurm array."""

import shlex
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import Queue

import media
from batches.clip_job import FAILED, ROOT, ClipResult, run_clip
from batches.manifest import ClipTask
from command_line import UserError
from parallel.side_by_side import count_cores, list_cores

LOCAL_RAY = "local"  # Address for which a Ray cluster is started on this computer.
ANSWER_S = 5.0  # Seconds within which the address of a Ray cluster has to answer.


def run_locally(
    tasks: Sequence[ClipTask], output: Path, workers: int, threads: int, retries: int
) -> Iterator[ClipResult]:
    """Unwrap clips in so many processes side by side, each on cores of its own; yields each result when it is there."""
    free_cores: Queue[list[int]] = Queue()
    for worker in range(workers):
        free_cores.put(list_cores()[worker % count_cores() :: workers])
    is_ending = threading.Event()

    def run(task: ClipTask) -> ClipResult:
        cores = free_cores.get()
        try:
            return run_clip(task, output / task.name, threads, retries, cores, is_ending.is_set)
        finally:
            free_cores.put(cores)

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # After Ctrl-C, the clips that are worked on end soon, and no other one begins.
            is_ending.set()
            for future in futures:
                future.cancel()


def run_on_ray(
    tasks: Sequence[ClipTask], output: Path, address: str, workers: int, threads: int, retries: int
) -> Iterator[ClipResult]:
    """Unwrap clips on a Ray cluster, whose computers share the output folder; yields each result when it is there.

    address: HOST:PORT of the cluster's head, or "local" for one of `workers` on this computer. A clip whose worker dies
    is begun again on another one, and goes on where it was. Raises UserError if Ray is missing or does not answer.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install ray") from None
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    if address == LOCAL_RAY:
        ray.init(num_cpus=workers * threads, runtime_env=environment, log_to_driver=False, include_dashboard=False)
    else:
        check_answers(address)
        try:
            ray.init(address, runtime_env=environment, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--ray {address}: no Ray cluster ({str(error).splitlines()[0]}); give its head") from None
    try:
        remote = ray.remote(num_cpus=threads, max_retries=retries)(run_clip)
        folder = output.resolve()  # Workers begin in other folders.
        waiting = {remote.remote(task, folder / task.name, threads, retries): task for task in tasks}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(done)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                message = f"its worker died: {str(error).splitlines()[0]}"
                yield ClipResult(task.name, task.fingerprint(), FAILED, 1 + retries, 0.0, None, None, message)
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise UserError if nothing answers at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray {address}: expected HOST:PORT of the head of a cluster, or {LOCAL_RAY}")
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--ray {address}: does not answer ({error}); start the cluster with ray start --head, or check the address"
        ) from None


def write_slurm_script(
    path: Path, manifest: Path, output: Path, count: int, workers: int, arguments: list[str]
) -> None:
    """Write a Slurm array script with one task for each of `count` clips, of which `workers` run at a time.

    arguments: further flags of unwrap_many.py.
    """
    command = [sys.executable, str(ROOT / "unwrap_many.py"), str(manifest.resolve())]
    command += [f"--output_folder={output.resolve()}", *arguments]
    lines = (
        "#!/bin/bash",
        "#SBATCH --job-name=unwrap",
        f"#SBATCH --array=0-{count - 1}%{workers}",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=4G",
        "#SBATCH --requeue",
        f"#SBATCH --output={output.resolve()}/slurm_%a.txt",
        "# Each task unwraps one clip, and goes on where it was if it is started again.",
        f'{shlex.join(command)} --only="$SLURM_ARRAY_TASK_ID" --workers=1',
    )
    media.write_text(path, "\n".join(lines) + "\n")
