"""Frames as film and effects programs write them: OpenEXR with linear light, and DPX."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from media.color import BITS_8, bit_depth
from media.files import write_atomically

EXR_SUFFIX, DPX_SUFFIX = ".exr", ".dpx"
DPX_SIZE_OFFSET = 772  # bytes before the width and the height in the header of a DPX file
DPX_BYTE_ORDERS = {b"SDPX": ">", b"XPDS": "<"}


def check_openexr() -> None:
    """Raise UserError if the library that reads and writes EXR files is not installed."""
    from importlib.util import find_spec

    if find_spec("OpenEXR") is None:
        raise UserError("EXR files need a package: pip install OpenEXR (or use another format)")


@contextmanager
def open_exr(path: Path, header_only: bool = False) -> Iterator[Any]:
    """Open an EXR file with a channel for each letter. Raises UserError if it is none or is damaged."""
    check_openexr()
    import OpenEXR

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with OpenEXR.File(str(path), separate_channels=True, header_only=header_only) as file:
            yield file
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"{path}: damaged, or no EXR file that can be read ({error}); export it again") from None


def exr_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of the picture that an EXR file shows, its display window."""
    with open_exr(path, header_only=True) as file:
        low, high = file.header()["displayWindow"]
    return int(high[0] - low[0] + 1), int(high[1] - low[1] + 1)


def read_exr(path: Path) -> NDArray:
    """Read the colours of an EXR file as linear light, (H, W, 3), or (H, W, 4) with premultiplied colours.

    Halves stay float16, other numbers become float32; what is no number becomes 0. What lies between the data and the
    display window is black. Raises UserError if the file cannot be read or has no colours.
    """
    with open_exr(path) as file:
        channels = {name: channel.pixels.copy() for name, channel in file.channels().items()}
        low, high = (np.array(corner) for corner in file.header()["displayWindow"])
        data_low = np.array(file.header()["dataWindow"][0])
    pixels = choose_color_channels(path, channels)
    width, height = high - low + 1
    if pixels.shape[:2] == (height, width) and (data_low == low).all():
        return pixels
    shown = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    x, y = data_low - low
    rows, columns = slice(max(y, 0), y + pixels.shape[0]), slice(max(x, 0), x + pixels.shape[1])
    target = shown[rows, columns]
    target[:] = pixels[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return shown


def choose_color_channels(path: Path, channels: Mapping[str, NDArray]) -> NDArray:
    """Return the colours, and the opacity if there is one, from the channels of an EXR file.

    Without channels of these names, those of its only layer are taken, such as beauty.R.
    """
    layers = {name.rpartition(".")[0] for name in channels}
    prefix = f"{next(iter(layers))}." if len(layers) == 1 and layers != {""} else ""
    for names in ("RGBA", "RGB", "Y", "A"):
        if all(prefix + name in channels for name in names):
            pixels = np.nan_to_num(np.dstack([channels[prefix + name] for name in names]))
            pixels = np.repeat(pixels, 3, -1) if len(names) == 1 else pixels
            return pixels if pixels.dtype == np.float16 else pixels.astype(np.float32)
    listed = ", ".join(sorted(channels)[:8])
    raise UserError(f"{path}: has no channels R, G and B or Y, only {listed}; write its colours into those")


def write_exr(path: Path, channels: Mapping[str, NDArray], attributes: Mapping[str, Any] | None = None) -> None:
    """Write an EXR file. channels: (H, W), (H, W, 3) or (H, W, 4) of float16 or float32, by name.

    A name of several letters, such as RGBA, or layer.RGBA, is one channel for each letter of its last part.
    """
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage} | dict(attributes or {})
    arrays = {name: np.ascontiguousarray(values) for name, values in channels.items()}
    with write_atomically(path) as temporary, OpenEXR.File(header, arrays) as file:
        file.write(str(temporary))


def dpx_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a DPX file from its header."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        header = file.read(DPX_SIZE_OFFSET + 8)
    order = DPX_BYTE_ORDERS.get(header[:4])
    if order is None or len(header) < DPX_SIZE_OFFSET + 8:
        raise UserError(f"{path}: not a DPX file that can be read; export it again")
    width, height = struct.unpack_from(f"{order}II", header, DPX_SIZE_OFFSET)
    return width, height


def read_dpx(path: Path) -> NDArray:
    """Read a DPX file as (H, W, 3), uint8 or, with more bits, uint16. Values are taken as a screen shows them."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        # The file is given and not its name, in which a % would stand for the numbers of a sequence.
        with path.open("rb") as stored, av.open(stored, "r", format="dpx_pipe") as container:
            frame = next(container.decode(video=0))
            return frame.to_ndarray(format="rgb48le" if bit_depth(frame) > BITS_8 else "rgb24")
    except (av.error.FFmpegError, StopIteration) as error:
        raise UserError(f"{path}: not a DPX file that can be read ({error}); export it again") from None
