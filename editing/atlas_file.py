"""The file atlas.json, which tells what part of a layer's square each exported atlas image shows.

With it, paint on an exported image returns to the right place.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

import media
from command_line import UserError
from implicit_neural_networks import Model, atlas_to_uv, uv_to_atlas
from rendering.atlas_view import AtlasView

ATLAS_FILE_NAME = "atlas.json"
EXTENSION_FILE_NAME = "extends.json"  # in the folder of an extended run
HASH_CHUNK_BYTES = 1 << 22  # Bytes of a checkpoint that are read at once.
FADE_FRAMES = 4  # Most frames in which the paint of one look gives way to that of the next.


@dataclass(frozen=True)
class LayerImage:
    """An exported image of one layer, as atlas.json describes it."""

    image: str  # file name
    layer: int  # index of the layer: front to back, the background last
    width: int  # pixels
    height: int  # pixels
    u: float  # position of the center of the upper left pixel in the layer's own square [-1, 1]^2
    v: float
    uv_per_pixel: float
    padding_px: int = 0  # pixels by which the opaque part is larger than the part that is visible in frames
    projection: str = "plane"  # how the frames were laid onto the atlas, see `Model.projection`
    units: Sequence[float] = (1.0, 0.0, 0.0)  # of u and v, see `Model.uv_units`
    look: int | None = None  # number of the frame around which the layer looks like this; None: in all frames

    def convert_units(self, units: Sequence[float]) -> "LayerImage":
        """Return the same image with u and v in other units."""
        scale, *offset = self.units
        new_scale, *new_offset = units
        u, v = (
            (scale * at + old - new) / new_scale
            for at, old, new in zip((self.u, self.v), offset, new_offset, strict=True)
        )
        return replace(self, u=u, v=v, uv_per_pixel=self.uv_per_pixel * scale / new_scale, units=tuple(units))

    def view(self, model: Model, size: tuple[int, int], corner: tuple[float, float] | None) -> AtlasView:
        """Return the part of the shared atlas that an edit of `size` (width, height) covers.

        Without a corner, the edit covers the whole image, at any resolution. With a corner, it covers a part of the
        image at the image's resolution; the corner is the pixel (x, y) of the image at which this part begins. It is
        the right part even if the atlas has been enlarged since.
        """
        image = self.convert_units(model.uv_units(self.layer))
        scale = (self.width / size[0], self.height / size[1]) if corner is None else (1.0, 1.0)
        first_pixel = corner or tuple(0.5 * factor - 0.5 for factor in scale)
        steps = [0.5 * image.uv_per_pixel * factor for factor in scale]
        atlas_center = model.atlas_centers[self.layer, 0].tolist()
        left, top = (
            uv_to_atlas(origin + pixel * image.uv_per_pixel, center)
            for origin, pixel, center in zip((image.u, image.v), first_pixel, atlas_center, strict=True)
        )
        return AtlasView(left, top, steps[0] * (size[0] - 1), steps[1] * (size[1] - 1))


@dataclass(frozen=True)
class AtlasFile:
    """The content of atlas.json: all exported images of a run."""

    run: str  # name of the run's folder
    checkpoint: str  # fingerprint of the checkpoint, see `checkpoint_fingerprint`
    layers: list[LayerImage]
    looks: list[LayerImage] = field(default_factory=list)  # of the same size and place as the images in `layers`

    def layer(self, index: int) -> LayerImage:
        """Return the image of a layer. Raises UserError if the layer was not exported."""
        for image in self.layers:
            if image.layer == index:
                return image
        raise UserError(
            f"the exported atlas of {self.run} has no layer {index}: it is visible in no frame; paint another layer"
        )

    def find_image(self, path: Path, index: int) -> LayerImage:
        """Return the image of a layer that a picture is painted over: that of a look if its name begins like it.

        Raises UserError if the layer was not exported.
        """
        looks = [look for look in self.looks if look.layer == index and path.stem.startswith(Path(look.image).stem)]
        return max(looks, key=lambda look: len(look.image)) if looks else self.layer(index)

    def frame_weights(self, image: LayerImage, frames: int) -> tuple[float, ...] | None:
        """Return how much paint on an image shows in each of T frames, 0 to 1; None: fully in all of them.

        Paint on a look shows around its frame. The weights of all looks of a layer add up to 1 in every frame.
        """
        if image.look is None:
            return None
        centers = sorted(look.look for look in self.looks if look.layer == image.layer and look.look is not None)
        return tuple(look_weights(centers, frames)[centers.index(image.look)].tolist())


def look_weights(centers: Sequence[int], frames: int) -> np.ndarray:
    """Return how much of the paint on each look shows in each of T frames, (K, T). centers: frames of the looks."""
    shown, t = np.ones((len(centers), frames)), np.arange(frames)
    for number, (earlier, later) in enumerate(pairwise(centers)):
        fade = min(FADE_FRAMES, later - earlier)
        later_part = np.clip((t - (earlier + later) / 2) / fade + 0.5, 0, 1)
        shown[number] -= later_part
        shown[number + 1] += later_part - 1
    return shown


def layer_image_of_view(model: Model, name: str, layer: int, view: AtlasView, size: tuple[int, int]) -> LayerImage:
    """Return the description of a square image of `size` (width, height) that covers a view."""
    atlas_center = model.atlas_centers[layer, 0].tolist()
    u, v = (atlas_to_uv(corner, center) for corner, center in zip((view.left, view.top), atlas_center, strict=True))
    return LayerImage(name, layer, *size, u, v, 2 * view.edge / (size[0] - 1), units=model.uv_units(layer))


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 hash of a checkpoint file."""
    status = checkpoint.stat()
    return hash_file(checkpoint, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def hash_file(path: Path, size: int, modified_ns: int) -> str:
    """Return the fingerprint of a file, which is read once for each size in bytes and time of its last change."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:16]


def write_atlas_file(folder: Path, atlas: AtlasFile) -> None:
    """Write atlas.json into a folder."""
    media.write_text(folder / ATLAS_FILE_NAME, json.dumps(asdict(atlas), indent=2) + "\n")


def note_extension(extended: Path, original: Path) -> None:
    """Note beside the checkpoint of an extended run which checkpoints it extends: pictures of their atlases fit it."""
    extends = [checkpoint_fingerprint(original), *list_extended(original)]
    media.write_text(extended.with_name(EXTENSION_FILE_NAME), json.dumps({"extends": extends}, indent=2) + "\n")


def list_extended(checkpoint: Path) -> list[str]:
    """Return the fingerprints of the checkpoints that the run of a checkpoint extends."""
    path = checkpoint.with_name(EXTENSION_FILE_NAME)
    try:
        return [str(each) for each in json.loads(path.read_text(encoding="utf-8"))["extends"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete it, and export the atlas of this run to paint on it") from None


def read_atlas_file(path: Path, checkpoint: Path) -> AtlasFile:
    """Read atlas.json; `path` is the file or its folder.

    Raises UserError if the file is missing or damaged, or if it was exported neither from this checkpoint nor from one
    that its run extends, whose atlases it keeps.
    """
    path = path / ATLAS_FILE_NAME if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        layers, looks = (
            [LayerImage(**image) for image in images] for images in (values["layers"], values.get("looks", ()))
        )
        atlas = AtlasFile(values["run"], values["checkpoint"], layers, looks)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; export_atlas.py writes it beside the pictures to paint on") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged, or written by another program; run export_atlas.py again") from None
    if atlas.checkpoint not in (checkpoint_fingerprint(checkpoint), *list_extended(checkpoint)):
        if atlas.run == checkpoint.resolve().parent.name:
            raise UserError(
                f"{path} was exported from an earlier checkpoint of {checkpoint.parent}; run export_atlas.py again"
            )
        raise UserError(
            f"{path} belongs to the run {atlas.run}, not to {checkpoint.parent}; run export_atlas.py for this run, or, "
            f"if both are runs of one clip, transfer the paint: --transfer_from and the folder of {atlas.run}"
        )
    return atlas
