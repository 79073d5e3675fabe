"""Flow of many pairs of frames: one after the other on a GPU, on all cores on the CPU."""

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
from media.flows import Flow, write_flow

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


def write_in_turn(pairs: list[Pair], size: tuple[int, int], method: FlowMethod) -> Iterator[None]:
    """Write the pairs one after the other; yields after each."""
    for pair in pairs:
        yield write_pair(pair, size, method)


def write_in_threads(pairs: list[Pair], size: tuple[int, int], make_method: Callable[[], FlowMethod]) -> Iterator[None]:
    """Write the pairs on all cores; yields after each. Every thread has a method of its own.

    Reading, searching, compressing and writing all leave Python to the others: threads are as fast as processes here,
    and begin at once.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    local = threading.local()

    def write(pair: Pair) -> None:
        if not hasattr(local, "method"):
            local.method = make_method()
        write_pair(pair, size, local.method)

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for done in as_completed([pool.submit(write, pair) for pair in pairs]):
            yield done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(before)
