"""Flow of many pairs of frames: one after the other on a GPU, in a pool of processes on the CPU."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from media.flows import Flow, write_flow

FEWEST_PER_PROCESS = 4  # pairs; fewer are done before a process has started

Image = NDArray[np.uint8]
FlowMethod = Callable[[Image, Image], tuple[Flow, Flow]]
"""Two frames (H, W, 3) to the flow from the first to the second and back, (H, W, 2) pixels each."""


@dataclass(frozen=True)
class Pair:
    """Two neighbouring frames, and where the flow between them goes; None: it is there already."""

    first: Path
    second: Path
    forward: Path | None
    backward: Path | None


def write_pair(pair: Pair, size: tuple[int, int], method: FlowMethod) -> None:
    """Compute and write what is missing of a pair, at (width, height)."""
    pictures = [media.resize(media.read_rgb(path), *size) for path in (pair.first, pair.second)]
    for path, flow in zip((pair.forward, pair.backward), method(*pictures), strict=True):
        if path is not None:
            write_flow(path, flow)


def in_turn(pairs: list[Pair], size: tuple[int, int], method: FlowMethod) -> Iterator[None]:
    """Write the pairs one after the other; yields after each."""
    for pair in pairs:
        yield write_pair(pair, size, method)


def in_processes(pairs: list[Pair], size: tuple[int, int], make_method: Callable[[], FlowMethod]) -> Iterator[None]:
    """Write the pairs in as many processes as there are cores; yields after each. make_method must be importable."""
    processes = min(os.cpu_count() or 1, len(pairs) // FEWEST_PER_PROCESS)
    if processes < 2:
        yield from in_turn(pairs, size, make_method())
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_process, (make_method,))
    try:
        for done in as_completed([pool.submit(write_in_process, pair, size) for pair in pairs]):
            yield done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_process(make_method: Callable[[], FlowMethod]) -> None:
    """What each process of the pool does first."""
    global method_of_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process that waits, which ends these
    cv2.setNumThreads(1)
    method_of_process = make_method()


def write_in_process(pair: Pair, size: tuple[int, int]) -> None:
    write_pair(pair, size, method_of_process)
