"""ST maps: for every pixel where in another picture to look, as Nuke's STMap and After Effects' RE:Map read it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

import media
from command_line import UserError
from rendering.frames import Floats


def st_values(positions: Floats, size: tuple[int, int]) -> Floats:
    """(H, W, 2): pixel positions (x, y), upper left center (0, 0), of a picture of (width, height), as (s, t).

    Both run from 0 to 1 over the picture, from its lower left corner: a pixel's center lies half a pixel inside.
    """
    width, height = size
    return np.stack(((positions[..., 0] + 0.5) / width, 1 - (positions[..., 1] + 0.5) / height), axis=-1)


def check_st_maps() -> None:
    """Raise UserError where the library that writes EXR files is not installed."""
    if find_spec("OpenEXR") is None:
        raise UserError(
            "ST maps are EXR files, which need a package: pip install OpenEXR (or leave them out of --kinds)"
        )


def write_st_map(path: Path, positions: Floats, size: tuple[int, int], share: Floats) -> None:
    """Write an EXR of 32-bit floats: red s, green t, blue 0, opacity the share (H, W) with which the layer is seen."""
    import OpenEXR

    values = np.dstack((st_values(positions, size), np.zeros_like(share), share)).astype(np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with (
        media.write_atomically(path) as temporary,
        OpenEXR.File(header, {"RGBA": np.ascontiguousarray(values)}) as file,
    ):
        file.write(str(temporary))
