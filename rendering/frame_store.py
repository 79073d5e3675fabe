"""A temporary folder of rendered frames, for computations that need several passes over the clip."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rendering.frames import EMPTY_IMAGE, Floats, Frame, render_frames
from rendering.trained_run import TrainedRun


class FrameStore:
    """Rendered frames in a folder, one file for each, read back one at a time. Colours are not stored."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def add(self, frame: Frame, error: Floats | None = None) -> None:
        """Store a frame without its colours, and the error of its colours (H, W) if it is known."""
        arrays: dict[str, Any] = {
            "uv": frame.uv,
            "alpha": frame.alpha,
            "full_range": frame.full_range,
            "error": EMPTY_IMAGE if error is None else error,
        }
        if frame.light is not None:
            arrays["light"] = frame.light
        np.savez(self.folder / f"{frame.t}.npz", **arrays)
        self.count += 1

    def read(self, t: int) -> tuple[Frame, Floats]:
        """Return frame t, with empty colours, and the error of its colours."""
        with np.load(self.folder / f"{t}.npz") as arrays:
            full_range, light = bool(arrays["full_range"]), arrays.get("light")
            return Frame(t, arrays["uv"], arrays["alpha"], EMPTY_IMAGE, full_range, light), arrays["error"]

    def __iter__(self) -> Iterator[tuple[Frame, Floats]]:
        return map(self.read, range(self.count))

    def frame(self, t: int) -> Frame:
        """Return frame t, with empty colours."""
        return self.read(t)[0]

    def frames(self) -> Iterator[Frame]:
        """Yield all frames, with empty colours."""
        return map(self.frame, range(self.count))


@contextmanager
def temporary_frame_store(folder: Path) -> Iterator[FrameStore]:
    """Yield an empty store in a new folder below `folder`; the new folder is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as temporary:
        yield FrameStore(Path(temporary))


def render_into_store(store: FrameStore, run: TrainedRun) -> Iterator[Frame]:
    """Render all frames of a run without colours, add each to the store, and yield it."""
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False)
    for frame in tqdm(frames, total=len(run.clip), desc="reading the mapping", unit="frame"):
        store.add(frame)
        yield frame


@contextmanager
def open_frame_store(run: TrainedRun, folder: Path) -> Iterator[FrameStore]:
    """Yield a temporary store below `folder` that holds all frames of a run, rendered once, without colours."""
    with temporary_frame_store(folder) as store:
        for _ in render_into_store(store, run):
            pass
        yield store
