"""Run independent pieces of work side by side, in threads.

NumPy, OpenCV and torch release Python's global lock while they compute, so threads use all cores. Work that is divided
into a few large pieces needs no barriers, and so suffers less from other processes than operators that divide each
small step among the cores."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

CPU = torch.device("cpu")
MOST_GPU_WORKERS = 8  # Threads that use a GPU at once; each holds a frame in the GPU's memory.
MOST_STREAM_WORKERS = 8  # Each holds an item, such as a frame in native size, in memory.

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(list_cores())


def list_cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def count_workers(device: torch.device) -> int:
    """Return how many threads compute on a device at once."""
    if device.type == "cuda":
        return min(count_cores(), MOST_GPU_WORKERS)
    return count_cores() if device == CPU else 1


def map_side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device = CPU
) -> list[Result]:
    """Return the results of a function for all items, in their order; each core works on one item at a time.

    device: on which the function computes. Several threads share a CUDA GPU, because part of the function runs on the
    CPU; other devices take the items one after the other.

    While several items are worked on, torch's operators share the cores among them. Gradients are recorded if the
    caller records them. An exception of the function is raised here, after the work that has begun is done.
    """
    if device.type not in ("cpu", "cuda"):
        return [function(item) for item in items]
    items, cores, threads = list(items), count_workers(device), torch.get_num_threads()
    workers, records_gradients = max(1, min(cores, len(items))), torch.is_grad_enabled()

    def prepare_thread() -> None:
        torch.set_num_threads(max(1, threads // workers))
        torch.set_grad_enabled(records_gradients)

    try:
        with ThreadPoolExecutor(workers, initializer=prepare_thread) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # torch also keeps the number for threads that are still to come.


def stream_side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], most_workers: int = MOST_STREAM_WORKERS
) -> Generator[Result, None, None]:
    """Yield the results of a function for all items, in their order, while the cores work on the next items.

    At most most_workers cores work, and at most one item more than that is in memory, so memory does not grow with the
    number of items. The items are taken in the caller's thread. torch uses one thread for each item, and records no
    gradients. An exception of the function is raised when its result is due. A caller that may stop early closes the
    stream (contextlib.closing), which waits until no thread works any more.
    """

    def prepare_thread() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)

    workers, threads = max(1, min(count_cores(), most_workers)), torch.get_num_threads()
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, initializer=prepare_thread)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # torch also keeps the number for threads that are still to come.


def run_side_by_side(*tasks: Callable[[], Any]) -> list[Any]:
    """Return the results of some functions without arguments, which run at the same time."""
    return map_side_by_side(lambda task: task(), tasks)


class Cores:
    """Threads that stay, one per core, for work that is divided again and again. torch uses one thread in each."""

    def __init__(self, count: int):
        """With a count of 1, the caller's thread does the work."""
        self.count = count
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return the results of a function for all items, in their order; each core works on one item at a time."""
        return list(map(function, items) if self.pool is None else self.pool.map(function, items))
