"""Optical flow on disk: arrays (H, W, 2) of displacements (dx, dy) in pixels from one frame to another.

This project writes .npz files with float16 values under the key `flow`, rounded to 1/64 pixel. They take about a tenth
of the space of the published .npy files (float32). Both are read. Middlebury .flo files can be imported.
"""

import math
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from media.files import write_atomically
from media.images import resize

FORWARD, BACKWARD = 0, 1  # directions of flow: to the next frame, and to the previous one
STEPS = (1, -1)  # frames from a frame to its neighbour, for each direction
STEPS_PER_PX = 64  # stored values are multiples of 1/64 px. DIS and RAFT err by more, and so does float16 above 16 px
SUFFIXES = (".npz", ".npy")  # formats of flow files, in the order of preference
KEY = "flow"  # name of the array in an .npz file
FLO_MAGIC = 202021.25  # first number of every .flo file
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
HEADER_LOCK = threading.Lock()
LARGEST_PX = 30_000  # largest displacement that is written; float16 ends at 65504

Floats = NDArray[np.floating]


class DamagedFlow(Exception):
    """A file does not hold flow. The message describes its content."""


def flow_name(source: str, target: str, suffix: str = SUFFIXES[0]) -> str:
    """Return the published file name of the flow between two frames, given the file names of the frames."""
    return f"{source}_{target}{suffix}"


def find_flow(folder: Path, source: str, target: str) -> Path | None:
    """Return the existing flow file between two frames, in either format; None if there is none."""
    candidates = (folder / flow_name(source, target, suffix) for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_flow(path: Path) -> Floats:
    """Read an .npz, .npy or .flo file as (H, W, 2) float32. Raises DamagedFlow or FileNotFoundError."""
    try:
        if path.suffix == ".flo":
            return read_flo(path)
        if path.suffix == ".npy":
            with path.open("rb") as file:
                flow = read_array(file)
        else:
            with zipfile.ZipFile(path) as archive, archive.open(f"{KEY}.npy") as entry:
                flow = read_array(entry)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        raise DamagedFlow("not a whole flow file") from None
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise DamagedFlow(f"has shape {flow.shape}, expected (height, width, 2)")
    flow = flow.astype(np.float32)
    if not np.isfinite(flow).all():  # checked after the conversion: it takes ten times as long in float16
        raise DamagedFlow("holds NaN or infinite values")
    return flow


def read_array(file: IO[bytes]) -> NDArray:
    """Read an array in NumPy's format, as np.load does, but safely in several threads. Raises ValueError."""
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(dtype)
    values = np.frombuffer(file.read(), dtype, count=math.prod(shape))
    return values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array in NumPy's format: its shape, whether columns come first, and its type.

    NumPy reads it with Python's parser, which raises SystemError now and then if two threads parse before Python 3.12.
    """
    version = np.lib.format.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(version)
    with HEADER_LOCK:
        return HEADER_READERS[version](file)


def read_flo(path: Path) -> Floats:
    """Read a Middlebury file: a magic number, width, height, then rows of (dx, dy), all little-endian.

    Raises ValueError if it is not such a file.
    """
    content = path.read_bytes()
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != np.float32(FLO_MAGIC):
        raise ValueError(path)
    width, height = np.frombuffer(content, "<i4", 2, offset=4)
    return np.frombuffer(content, "<f4", width * height * 2, offset=12).reshape(height, width, 2)


def write_flow(path: Path, flow: Floats) -> None:
    """Write flow (H, W, 2) as .npz or .npy, depending on the suffix of `path`.

    Raises UserError if values are not finite or too large for the file format.
    """
    if not np.isfinite(flow).all() or np.abs(flow).max(initial=0) > LARGEST_PX:
        raise UserError(f"{path}: the flow to write is not finite or above {LARGEST_PX} px; use another --method")
    with write_atomically(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, flow.astype(np.float32))
            return
        rounded = (np.rint(flow * STEPS_PER_PX) / STEPS_PER_PX).astype(np.float16)
        # The same format as np.savez_compressed, but at a compression level that takes a tenth of the time.
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(f"{KEY}.npy", "w") as entry,
        ):
            np.lib.format.write_array(entry, rounded, allow_pickle=False)


def flow_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of a flow file; None if it is damaged or holds no flow and must be computed again."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                shape, _, dtype = read_header(file)
                if path.stat().st_size - file.tell() < math.prod(shape) * dtype.itemsize:
                    return None
        else:
            with zipfile.ZipFile(path) as archive, archive.open(f"{KEY}.npy") as entry:
                if archive.testzip() is not None:
                    return None
                shape, _, _ = read_header(entry)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return (shape[1], shape[0]) if len(shape) == 3 and shape[2] == 2 else None


def resize_flow(flow: Floats, width: int, height: int) -> Floats:
    """Resize flow (h, w, 2) to (height, width, 2). Scale dx by the ratio of widths and dy by the ratio of heights."""
    old_height, old_width = flow.shape[:2]
    if (old_width, old_height) == (width, height):
        return flow
    return resize(flow, width, height) * np.array([width / old_width, height / old_height], np.float32)
