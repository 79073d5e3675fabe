"""Compute the flow of many pairs of frames: one after the other on a GPU, on all cores on the CPU."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import media
from media import Pixels
from media.flows import write_flow

Floats = NDArray[np.floating]
FlowMethod = Callable[[Pixels, Pixels], tuple[Floats, Floats]]
"""Take two frames (H, W, 3); return the forward and the backward flow between them, each (H, W, 2) in pixels."""


@dataclass(frozen=True)
class Pair:
    """Two neighbouring frames, and the files to write the flow between them to."""

    first: Path
    second: Path
    forward: Path | None  # file for the flow from the first frame to the second; None if it exists already
    backward: Path | None  # file for the flow from the second frame to the first; None if it exists already

    def missing_files(self) -> list[tuple[Path, Path, Path]]:
        """Return (source frame, target frame, flow file) for each direction that is to be written."""
        directions = ((self.first, self.second, self.forward), (self.second, self.first, self.backward))
        return [(source, target, path) for source, target, path in directions if path is not None]


def write_pair(pair: Pair, size: tuple[int, int], method: FlowMethod) -> None:
    """Compute the flow of a pair at (width, height), and write the directions that are missing."""
    first, second = (media.resize(media.read_rgb(path), *size) for path in (pair.first, pair.second))
    for path, flow in zip((pair.forward, pair.backward), method(first, second), strict=True):
        if path is not None:
            write_flow(path, flow)


def write_in_turn(pairs: list[Pair], size: tuple[int, int], method: FlowMethod) -> Iterator[None]:
    """Write the flow of the pairs at (width, height), one pair after the other; yield after each."""
    for pair in pairs:
        write_pair(pair, size, method)
        yield


def write_in_threads(pairs: list[Pair], size: tuple[int, int], make_method: Callable[[], FlowMethod]) -> Iterator[None]:
    """Write the flow of the pairs at (width, height) on all cores; yield after each pair.

    make_method: called once in each thread, because a method object may not be shared by threads.
    Threads are as fast as processes here and start at once: reading, flow, compression and writing all release
    Python's global lock.
    """
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    local = threading.local()

    def write(pair: Pair) -> None:
        if not hasattr(local, "method"):
            local.method = make_method()
        write_pair(pair, size, local.method)

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for future in as_completed([pool.submit(write, pair) for pair in pairs]):
            future.result()  # raises what the thread raised
            yield
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(threads_before)
