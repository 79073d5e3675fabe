"""ST maps: for every pixel the position in another image, in the form that Nuke's STMap and RE:Map UV read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from editing.atlas_file import LayerImage
from media import make_folder
from media.film import write_exr
from rendering.atlas_view import compute_atlas_uv
from rendering.frames import Floats, Frame
from rendering.inverse import invert_uv_field
from rendering.resampling import sample_field
from rendering.trained_run import TrainedRun

ST_CONVENTION = (
    "red: s, green: t, from 0 to 1, from the lower left corner, the center of a pixel half a pixel inside; "
    "blue: visibility; not multiplied by an opacity, no alpha channel"
)


@dataclass
class LayerMap:
    """Where a layer of a frame lies in its atlas image."""

    layer: str  # name of the layer
    texels: Floats  # (H, W, 2) positions in the atlas image, pixels
    size: tuple[int, int]  # width and height of the atlas image
    visibility: Floats  # (H, W) of the layer in the frame


def st_values(positions: Floats, size: tuple[int, int]) -> Floats:
    """Convert pixel positions (H, W, 2) in an image of `size` (width, height) to (s, t), (H, W, 2).

    Positions are (x, y), with the center of the upper left pixel at (0, 0). s and t run from 0 to 1 over the image,
    from its lower left corner; so the center of a pixel lies half a pixel inside.
    """
    width, height = size
    return np.stack(((positions[..., 0] + 0.5) / width, 1 - (positions[..., 1] + 0.5) / height), axis=-1)


def st_channels(positions: Floats, size: tuple[int, int], visibility: Floats) -> dict[str, NDArray[np.float32]]:
    """Return the channels of an ST map by name: R is s, G is t, B is the visibility (H, W) of the layer.

    positions (H, W, 2) and size: see `st_values`. There is no alpha channel: programs that divide colours by it would
    break the map. Blender's Map UV takes the third channel as opacity, and Nuke's STMap takes any as its mask.
    """
    values = st_values(positions, size)
    channels = {"R": values[..., 0], "G": values[..., 1], "B": visibility}
    return {name: channel.astype(np.float32) for name, channel in channels.items()}


def write_st_map(path: Path, positions: Floats, size: tuple[int, int], visibility: Floats) -> None:
    """Write an EXR file of 32-bit floats with the channels of `st_channels`."""
    write_exr(path, st_channels(positions, size, visibility), {"comments": ST_CONVENTION})


def map_positions(run: TrainedRun, frame: Frame, images: dict[int, LayerImage]) -> list[LayerMap]:
    """Return where each layer of a frame lies in its atlas image."""
    atlas_uv, maps = compute_atlas_uv(run.model, frame), []
    for layer, image in images.items():
        size = (image.width, image.height)
        texels = image.view(run.model, size, None).to_pixels(atlas_uv[layer], size).numpy()
        maps.append(LayerMap(run.model.layers[layer].name, texels, size, frame.visibility[layer]))
    return maps


def st_layers(maps: Sequence[LayerMap]) -> dict[str, NDArray]:
    """Return the ST maps of a frame as channels of an EXR file, by names such as st_foreground.R."""
    return {
        f"st_{each.layer}.{name}": channel
        for each in maps
        for name, channel in st_channels(each.texels, each.size, each.visibility).items()
    }


def write_inverse_maps(folder: Path, name: str, maps: Sequence[LayerMap], native_size: tuple[int, int]) -> None:
    """Write the way from each atlas image to the frame, of native_size (width, height), as an ST map."""
    for each in maps:
        positions, is_found = invert_uv_field(each.texels, each.size)
        visibility = np.where(is_found, sample_field(each.visibility, positions), 0).astype(np.float32)
        path = make_folder(folder / f"st_{each.layer}_inverse") / f"{name}.exr"
        write_st_map(path, positions, native_size, visibility)
