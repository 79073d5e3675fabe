"""ST maps: for every pixel the position in another image, in the form that Nuke's STMap and RE:Map UV read."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

import media
from command_line import UserError
from rendering.frames import Floats


def st_values(positions: Floats, size: tuple[int, int]) -> Floats:
    """Convert pixel positions (H, W, 2) in an image of `size` (width, height) to (s, t), (H, W, 2).

    Positions are (x, y), with the center of the upper left pixel at (0, 0). s and t run from 0 to 1 over the image,
    from its lower left corner; so the center of a pixel lies half a pixel inside.
    """
    width, height = size
    return np.stack(((positions[..., 0] + 0.5) / width, 1 - (positions[..., 1] + 0.5) / height), axis=-1)


def check_st_maps() -> None:
    """Raise UserError if the library that writes EXR files is not installed."""
    if find_spec("OpenEXR") is None:
        raise UserError(
            "ST maps are EXR files, which need a package: pip install OpenEXR (or leave them out of --kinds)"
        )


def write_st_map(path: Path, positions: Floats, size: tuple[int, int], visibility: Floats) -> None:
    """Write an EXR file of 32-bit floats: red is s, green is t, blue is 0, alpha is the visibility (H, W) of the layer.

    positions (H, W, 2) and size: see `st_values`.
    """
    import OpenEXR

    values = np.dstack((st_values(positions, size), np.zeros_like(visibility), visibility)).astype(np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with (
        media.write_atomically(path) as temporary,
        OpenEXR.File(header, {"RGBA": np.ascontiguousarray(values)}) as file,
    ):
        file.write(str(temporary))
