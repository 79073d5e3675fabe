"""atlas.json: which (u, v) the pixels of an exported atlas image stand for, so that paint comes back to its place."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import media
from command_line import UserError
from implicit_neural_networks import Model
from rendering.atlas_view import AtlasView

ATLAS_FILE_NAME = "atlas.json"
ASPECT_PX = 1.5  # by which the sides of a scaled edit may miss the atlas image's aspect


@dataclass(frozen=True)
class LayerImage:
    """An exported image of one layer."""

    image: str  # file name
    layer: int  # front to back, the background last
    width: int
    height: int
    u: float  # of the center of the upper left pixel, in the layer's own square [-1, 1]
    v: float
    uv_per_pixel: float
    padding_px: int = 0  # by which its opaque part is larger than what frames show

    def view(self, model: Model, size: tuple[int, int], corner: tuple[float, float] | None) -> AtlasView:
        """Where an edit of (width, height) lies in the shared atlas.

        It covers the whole image at any resolution; or, with the (x, y) of its upper left pixel in the image, a part
        of it at the image's resolution.
        """
        scale = (self.width / size[0], self.height / size[1]) if corner is None else (1.0, 1.0)
        first = corner or tuple(0.5 * each - 0.5 for each in scale)
        steps = [0.5 * self.uv_per_pixel * each for each in scale]
        center = model.atlas_centers[self.layer, 0].tolist()
        left, top = (
            0.5 * (origin + at * self.uv_per_pixel) + middle
            for origin, at, middle in zip((self.u, self.v), first, center, strict=True)
        )
        return AtlasView(left, top, steps[0] * (size[0] - 1), steps[1] * (size[1] - 1))


@dataclass(frozen=True)
class AtlasFile:
    """All exported images of a run."""

    run: str  # name of the run's folder
    checkpoint: str  # its fingerprint
    layers: list[LayerImage]

    def layer(self, number: int) -> LayerImage:
        """The image of a layer. Raises UserError if it was left out."""
        if found := next((each for each in self.layers if each.layer == number), None):
            return found
        raise UserError(
            f"the exported atlas of {self.run} has no layer {number}: no frame shows it, so nothing is painted"
        )


def layer_image_of_view(model: Model, name: str, layer: int, view: AtlasView, size: tuple[int, int]) -> LayerImage:
    """What describes a square picture of (width, height) over a view."""
    center = model.atlas_centers[layer, 0].tolist()
    u, v = (2 * (corner - middle) for corner, middle in zip((view.left, view.top), center, strict=True))
    return LayerImage(name, layer, *size, u, v, 2 * view.edge / (size[0] - 1))


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """Tells checkpoints apart."""
    digest = sha256()
    with checkpoint.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()[:16]


def write_atlas_file(folder: Path, atlas: AtlasFile) -> None:
    media.write_text(folder / ATLAS_FILE_NAME, json.dumps(asdict(atlas), indent=2) + "\n")


def read_atlas_file(path: Path, checkpoint: Path) -> AtlasFile:
    """The atlas.json at `path`, or in that folder. Raises UserError if another run or checkpoint made it."""
    path = path / ATLAS_FILE_NAME if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        atlas = AtlasFile(values["run"], values["checkpoint"], [LayerImage(**each) for each in values["layers"]])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; export_atlas.py writes it beside the pictures to paint on") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged, or written by something else; run export_atlas.py again") from None
    if atlas.checkpoint != checkpoint_fingerprint(checkpoint):
        is_same = atlas.run == checkpoint.resolve().parent.name
        remedy = (
            ""
            if is_same
            else f", or, if both are of one clip, carry the paint over: --transfer_from and the folder of {atlas.run}"
        )
        raise UserError(
            f"{path} belongs to the run {atlas.run}{' as it was' if is_same else ''}, not to {checkpoint.parent} "
            f"as it is now; export its atlas again{remedy}"
        )
    return atlas


def check_aspect(path: Path, size: tuple[int, int], image: LayerImage) -> None:
    """Refuse an edit of the whole image that is not the image scaled."""
    expected = size[0] * image.height / image.width
    if abs(expected - size[1]) > ASPECT_PX:
        raise UserError(
            f"{path}: is {size[0]} x {size[1]}, {image.image} is {image.width} x {image.height}; paint over that "
            "picture at any size but of its aspect, or tell where a part begins (--edit_foreground_at, _background_at)"
        )
