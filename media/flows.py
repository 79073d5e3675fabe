"""Optical flow on disk: pixels (dx, dy) from one frame to another, (height, width, 2).

Ours are .npz: float16 under the key `flow`, rounded to 1/64 pixel, about a tenth of the published .npy (float32).
Both are read. .flo (Middlebury) can be imported.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from media.files import write_atomically
from media.images import resize

FORWARD, BACKWARD = 0, 1  # flow to the next frame, to the previous one
STEPS = (1, -1)  # frames by which each of them moves
STEPS_PER_PX = 64  # float16 has no finer steps beyond 16 px; DIS and RAFT err by more
SUFFIXES = (".npz", ".npy")  # in which flow is looked for
KEY = "flow"
FLO_MAGIC = 202021.25
LARGEST_PX = 30_000  # within float16

Flow = NDArray[np.float32]


class DamagedFlow(Exception):
    """A file that holds no flow; the message says what it holds instead."""


def flow_name(source: str, target: str, suffix: str = SUFFIXES[0]) -> str:
    """File name of the flow between two frames, given by their file names; as published but for the suffix."""
    return f"{source}_{target}{suffix}"


def find_flow(folder: Path, source: str, target: str) -> Path | None:
    """The file of a flow in either format; None if there is none."""
    found = (folder / flow_name(source, target, suffix) for suffix in SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def read_flow(path: Path) -> Flow:
    """(H, W, 2) float32 of an .npz, .npy or .flo file. Raises DamagedFlow, FileNotFoundError."""
    try:
        if path.suffix == ".flo":
            return read_flo(path)
        loaded = np.load(path, allow_pickle=False)
        flow = loaded[KEY] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise DamagedFlow("not a whole flow file") from None
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise DamagedFlow(f"has shape {flow.shape}, expected (height, width, 2)")
    flow = flow.astype(np.float32)
    if not np.isfinite(flow).all():  # asked of float16 it takes ten times as long
        raise DamagedFlow("holds NaN or infinite values")
    return flow


def read_flo(path: Path) -> Flow:
    """A Middlebury file: a magic number, width, height, then rows of (dx, dy), little-endian."""
    content = path.read_bytes()
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != np.float32(FLO_MAGIC):
        raise ValueError(path)
    width, height = np.frombuffer(content, "<i4", 2, offset=4)
    return np.frombuffer(content, "<f4", width * height * 2, offset=12).reshape(height, width, 2)


def write_flow(path: Path, flow: Flow) -> None:
    """Write .npz or .npy, by the suffix, whole or not at all. Raises UserError for motion no file can hold."""
    if not np.isfinite(flow).all() or np.abs(flow).max(initial=0) > LARGEST_PX:
        raise UserError(f"{path}: the flow to write is not finite or above {LARGEST_PX} px; use another --method")
    with write_atomically(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, flow.astype(np.float32))
            return
        rounded = (np.rint(flow * STEPS_PER_PX) / STEPS_PER_PX).astype(np.float16)
        # As np.savez_compressed, at a level that takes a tenth of its time.
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(f"{KEY}.npy", "w") as entry,
        ):
            np.lib.format.write_array(entry, rounded, allow_pickle=False)


def flow_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a flow file; None if it is damaged or no flow, and has to be computed anew."""
    try:
        if path.suffix == ".npy":  # the header and the file's length say it
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return shape[1::-1] if len(shape) == 3 and shape[2] == 2 else None
        with zipfile.ZipFile(path) as archive, archive.open(f"{KEY}.npy") as entry:
            if archive.testzip() is not None:
                return None
            np.lib.format.read_magic(entry)
            shape, _, _ = np.lib.format.read_array_header_1_0(entry)
            return shape[1::-1] if len(shape) == 3 and shape[2] == 2 else None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None


def resize_flow(flow: Flow, width: int, height: int) -> Flow:
    """Resize flow (h, w, 2) to (height, width, 2); x scales with the width and y with the height."""
    old_height, old_width = flow.shape[:2]
    if (old_width, old_height) == (width, height):
        return flow
    return resize(flow, width, height) * np.float32([width / old_width, height / old_height])
