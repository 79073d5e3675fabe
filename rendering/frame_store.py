"""Rendered frames kept on disk for later passes, read back one at a time."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rendering.frames import NO_PICTURE, Floats, Frame, render_frames
from rendering.trained_run import TrainedRun


class FrameStore:
    """Rendered frames on disk, in a folder that vanishes: one file each, read back one at a time."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0

    def add(self, frame: Frame, error: Floats | None = None) -> None:
        """Keep a frame without its colours, and how far those were off (H, W) where that is known."""
        error = NO_PICTURE if error is None else error
        kept = {"uv": frame.uv, "alpha": frame.alpha, "full_range": frame.full_range, "error": error}
        if frame.light is not None:
            kept["light"] = frame.light
        np.savez(self.folder / f"{frame.t}.npz", **kept)
        self.count += 1

    def read(self, t: int) -> tuple[Frame, Floats]:
        """One frame, its colours empty, and its error."""
        with np.load(self.folder / f"{t}.npz") as kept:
            light = kept.get("light")
            return Frame(t, kept["uv"], kept["alpha"], NO_PICTURE, bool(kept["full_range"]), light), kept["error"]

    def __iter__(self) -> Iterator[tuple[Frame, Floats]]:
        return map(self.read, range(self.count))

    def frame(self, t: int) -> Frame:
        """One frame, its colours empty."""
        return self.read(t)[0]

    def frames(self) -> Iterator[Frame]:
        """The frames alone."""
        return map(self.frame, range(self.count))


def render_into_store(store: FrameStore, run: "TrainedRun") -> Iterator[Frame]:
    """Yield all frames of a run, without colours, each kept in the store."""
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False)
    for frame in tqdm(frames, total=len(run.clip), desc="reading the mapping", unit="frame"):
        store.add(frame)
        yield frame


@contextmanager
def open_frame_store(run: "TrainedRun", folder: Path) -> Iterator[FrameStore]:
    """All frames of a run, rendered once, without colours; they lie in `folder` as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as kept:
        store = FrameStore(Path(kept))
        for _ in render_into_store(store, run):
            pass
        yield store
