"""Several processes that train one run together, each on its own device, as `torchrun` starts them.

Alone, a process is the main one of a group of one, and nothing here communicates.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed

from command_line import UserError

# The others wait while the main process evaluates. That a process is lost shows at once, because its connection closes.
LONGEST_WAIT = timedelta(hours=24)
LOST_PROCESS_WORDS = ("gloo", "nccl", "peer", "connection")  # of errors that a lost process causes in the others


class LostProcessError(Exception):
    """Another process of the group has ended, or cannot be reached."""


def count_launched_processes() -> int:
    """Return the number of processes that `torchrun` has started; 1 without it."""
    is_launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


def join_group(device: str | None) -> str | None:
    """Join the group of processes that `torchrun` has started, if it has, and return the device of this process.

    device: as a user gives it, "cpu" or "cuda"; None takes a GPU for each process, if there are any. From here on all
    processes but the main one print nothing but unexpected errors. Raises UserError for a device that they can't share.
    """
    if count_launched_processes() == 1:
        return device
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: several processes train on cpu, or on cuda with a GPU for each")
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{count_launched_processes()} processes were started on {torch.cuda.device_count()} GPUs; give torchrun "
            f"--nproc_per_node {max(1, torch.cuda.device_count())}, or --device cpu"
        )
    device = f"cuda:{local_rank}" if kind == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=LONGEST_WAIT)
    if not is_main():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
        sys.excepthook = partial(traceback.print_exception, file=sys.__stderr__)
    return device


def count() -> int:
    """Return the number of processes of the group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in its group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def add_up(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    if count() == 1:
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def take_largest(values: list[float], device: torch.device) -> list[float]:
    """Return the largest of each number over all processes."""
    if count() == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return largest.tolist()


@contextmanager
def notice_lost_processes() -> Iterator[None]:
    """Raise LostProcessError instead of the errors of the communication that a lost process causes in the body."""
    try:
        yield
    except RuntimeError as error:
        if count() > 1 and any(word in str(error).lower() for word in LOST_PROCESS_WORDS):
            raise LostProcessError(str(error).splitlines()[0]) from None
        raise
