"""A temporary folder of rendered frames, for computations that need several passes over the clip."""

import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from parallel.side_by_side import stream_side_by_side
from rendering.frames import EMPTY_IMAGE, Floats, Frame, render_frames
from rendering.trained_run import TrainedRun

Result = TypeVar("Result")


class FrameStore:
    """Rendered frames of one size in a folder, a file for each array, read back one at a time. Colours are not stored.

    Frames may be added in any order, and by several threads.
    """

    def __init__(self, folder: Path):
        self.folder, self.full_range = folder, True
        self.formats: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}  # type and shape of the arrays by their name
        self.stored: set[int] = set()  # numbers of the frames that are stored

    def add(self, frame: Frame, error: Floats | None = None) -> None:
        """Store a frame without its colours, and the error of its colours (H, W) if it is known."""
        self.full_range = frame.full_range
        for name, values in (("uv", frame.uv), ("alpha", frame.alpha), ("light", frame.light), ("error", error)):
            if values is not None:
                self.formats[name] = values.dtype, values.shape
                # Not by `tofile`, whose error on a full disk does not say that the disk is full.
                self.path(frame.t, name).write_bytes(np.ascontiguousarray(values).data)
        self.stored.add(frame.t)

    @property
    def count(self) -> int:
        """Number of stored frames."""
        return len(self.stored)

    def path(self, t: int, name: str) -> Path:
        """Return the file of an array of frame t."""
        return self.folder / f"{t}_{name}.raw"

    def read(self, t: int, name: str) -> Floats:
        """Read an array of frame t.

        The files hold values alone. The header of NumPy's own files is read by Python's parser, which is not safe in
        threads before Python 3.12.
        """
        dtype, shape = self.formats[name]
        return np.fromfile(self.path(t, name), dtype).reshape(shape)

    def frame(self, t: int) -> Frame:
        """Read frame t, with empty colours."""
        light = self.read(t, "light") if "light" in self.formats else None
        return Frame(t, self.read(t, "uv"), self.read(t, "alpha"), EMPTY_IMAGE, self.full_range, light)

    def error(self, t: int) -> Floats:
        """Read the error of the colours of frame t, (H, W)."""
        return self.read(t, "error")

    def frames(self) -> Iterator[Frame]:
        """Yield all frames, with empty colours."""
        return map(self.frame, range(self.count))

    def map(self, function: Callable[[Frame], Result]) -> Generator[Result, None, None]:
        """Yield the results of a function for all frames, in their order; each core works on one frame at a time."""
        return stream_side_by_side(lambda t: function(self.frame(t)), range(self.count))


@contextmanager
def temporary_frame_store(folder: Path) -> Iterator[FrameStore]:
    """Yield an empty store in a new folder below `folder`; the new folder is removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix=".fields_", dir=folder) as temporary:
        yield FrameStore(Path(temporary))


def render_into_store(store: FrameStore, run: TrainedRun) -> Iterator[Frame]:
    """Render all frames of a run without colours, add each to the store, and yield it."""
    frames = render_frames(run.model, run.clip, run.full_range, with_colors=False)
    with closing(frames):
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
