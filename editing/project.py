"""A project of the editor in the browser: layers of paint over the atlases of a run, one JSON with pictures beside it.

The page keeps strokes, texts and pictures as objects that can be changed later, and writes what they look like together
as one picture for each layer. Only these pictures are read here, so every program draws the same.
"""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from command_line import UserError, warn
from editing.atlas_file import LayerImage, checkpoint_fingerprint
from editing.layer_edit import LayerEdit
from editing.layered_files import PaintPart, read_paint
from rendering.atlas_view import AtlasView
from rendering.blending import BLEND_MODES, color_matrix
from rendering.frames import Floats
from rendering.trained_run import TrainedRun

PROJECT_FILE = "project.json"
PROJECT_FORMAT = 1
INLINE = "data:image/png;base64,"  # Beginning of a picture that the project's file holds itself.
PAINT, FILE, RECOLOR = "paint", "file", "recolor"  # kinds of layers
EVERYWHERE = AtlasView(-1000.0, -1000.0, 2000.0)  # Holds every position, also where an object is nowhere.


@dataclass(frozen=True)
class ProjectLayer:
    """A layer of a project: paint over one layer of the video, or a change of its colours."""

    name: str
    kind: str  # PAINT, FILE or RECOLOR
    layer: int  # index of the video's layer
    is_visible: bool
    opacity: float  # 0 to 1
    blend: str  # one of BLEND_MODES
    is_attached: bool  # the paint follows the object beyond its outline, too
    surface: LayerImage  # the picture of the atlas over which the paint lies
    picture: Path | bytes | None  # of the paint, or the file somebody paints in; bytes: a PNG; None: empty
    hue_degrees: float = 0.0
    saturation: float = 1.0  # factor
    brightness: float = 1.0  # factor


@dataclass(frozen=True)
class Project:
    """What is rendered of a project."""

    path: Path
    clip: dict[str, Any]  # name, frames, width and height
    run: str  # name of the run that it was last painted on
    checkpoint: str  # fingerprint of that run's checkpoint
    surfaces: tuple[LayerImage | None, ...]  # the picture of each layer's atlas over which its paint lies
    hidden: frozenset[int]  # layers of the video that are not shown
    layers: tuple[ProjectLayer, ...]  # from the lowest to the uppermost


def read_project(path: Path) -> Project:
    """Read a project; `path` is its file or its folder. Raises UserError if it is missing or damaged."""
    path = path / PROJECT_FILE if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; edit_in_browser.py writes it into the folder of its project") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: is no JSON; give the {PROJECT_FILE} that edit_in_browser.py wrote") from None
    return parse_project(path, values)


def parse_project(path: Path, values: Any) -> Project:
    """Check the values of a project's file. Raises UserError that names what is missing or wrong."""
    if isinstance(values, dict) and values.get("format") not in (None, PROJECT_FORMAT):
        raise UserError(
            f"{path}: has the format {values['format']!r}, expected {PROJECT_FORMAT}; it was written by another version"
        )
    try:
        surfaces = tuple(LayerImage(**each) if each else None for each in values["surfaces"])
        layers = tuple(parse_layer(path, each, surfaces) for each in values["layers"])
        hidden = frozenset(int(number) for number in values["hidden"])
        return Project(path, dict(values["clip"]), values["run"], values["checkpoint"], surfaces, hidden, layers)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; give the {PROJECT_FILE} that edit_in_browser.py wrote") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); give the {PROJECT_FILE} that edit_in_browser.py wrote") from None


def parse_layer(path: Path, values: dict[str, Any], surfaces: tuple[LayerImage | None, ...]) -> ProjectLayer:
    """Check a layer of a project's file. Raises UserError for values that are not known, and KeyError."""
    name, kind, blend, layer = str(values["name"]), values["kind"], values["blend"], int(values["layer"])
    for key, value, known in (("kind", kind, (PAINT, FILE, RECOLOR)), ("blend", blend, tuple(BLEND_MODES))):
        if value not in known:
            raise UserError(f'{path}: layer "{name}": {key} is {value!r}, expected one of {", ".join(known)}')
    own = values.get("surface")  # Files of other programs keep the picture that they were painted over.
    surface = LayerImage(**own) if own else surfaces[layer] if 0 <= layer < len(surfaces) else None
    if surface is None or not 0 <= layer < len(surfaces):
        raise UserError(f'{path}: layer "{name}" paints on layer {layer} of the video, which has no atlas there')
    return ProjectLayer(
        name,
        kind,
        layer,
        bool(values["visible"]),
        float(np.clip(values["opacity"], 0, 1)),
        blend,
        bool(values.get("attached", False)),
        surface,
        find_layer_picture(path, values["picture"]) if values.get("picture") else None,
        float(values.get("hue", 0)),
        float(values.get("saturation", 1)),
        float(values.get("brightness", 1)),
    )


def find_layer_picture(project: Path, name: str) -> Path | bytes:
    """Return the path of a layer's picture, or its content if the project holds it, as one from a single page does.

    Raises UserError for a picture outside of the project's folder, and ValueError for a damaged one.
    """
    if name.startswith(INLINE):
        return base64.b64decode(name.removeprefix(INLINE), validate=True)
    return resolve_picture(project, name)


def resolve_picture(project: Path, name: str) -> Path:
    """Return the path of a project's picture. Raises UserError if it leaves the project's folder."""
    folder = project.resolve().parent
    path = (folder / name.replace("\0", "")).resolve()
    if not path.is_relative_to(folder):
        raise UserError(f"{project}: the picture {name!r} is outside of its folder; put it beside the project")
    return path


def check_project(project: Project, run: TrainedRun) -> None:
    """Raise UserError if a project does not belong to a run's clip, or if one of its pictures cannot be read.

    Warns if the run has been trained again since: paint then keeps its place in the atlases.
    """
    clip, expected = run.clip, project.clip
    if (len(clip), len(run.model.layers)) != (expected.get("frames"), len(project.surfaces)):
        raise UserError(
            f"{project.path}: painted for {expected.get('name')} with {expected.get('frames')} frames and "
            f"{len(project.surfaces)} layers; the run {run.name} of {clip.name} has {len(clip)} frames and "
            f"{len(run.model.layers)} layers; give the run that it was painted for"
        )
    if clip.name != expected.get("name"):
        raise UserError(
            f"{project.path}: painted for the clip {expected.get('name')}, the run {run.name} is of {clip.name}; give "
            "the run that it was painted for"
        )
    for layer in project.layers:
        if layer.picture is not None:
            read_project_paint(project, layer)
    if project.checkpoint != checkpoint_fingerprint(run.checkpoint):
        told = f"{project.path}: the run {run.name} was trained on since; paint keeps its place in the atlases"
        if project.run != run.name:
            told = (
                f"{project.path}: saved with the run {project.run}, not with {run.name}; paint keeps its place in the "
                f"atlases, but to see the same as in the editor, give --trained_model_folder=.../{project.run}"
            )
        warn(told)


def read_project_paint(project: Project, layer: ProjectLayer) -> list[PaintPart]:
    """Read the paint of a layer. Raises UserError if its picture is missing or damaged."""
    assert layer.picture is not None
    if isinstance(layer.picture, bytes):
        return [PaintPart(decode_inline_picture(project, layer.name, layer.picture))]
    if not layer.picture.is_file():
        raise UserError(
            f'{project.path}: the picture {layer.picture.name} of the layer "{layer.name}" is gone; put it back into '
            f"{layer.picture.parent}, or remove the layer in the editor"
        )
    return read_paint(layer.picture)


def decode_inline_picture(project: Project, name: str, content: bytes) -> Floats:
    """Decode a PNG that the project's file holds, (h, w, 4) premultiplied. Raises UserError if it is damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError(f'{project.path}: the picture of the layer "{name}" is damaged; download it again') from None
    return np.dstack((rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]))


def make_project_edits(project: Project, run: TrainedRun) -> list[LayerEdit]:
    """Return the edits of layers that a project asks for, each a step of its own, from the lowest to the uppermost."""
    edits = hide_layers(project, run)
    for layer in project.layers:
        if layer.is_visible and layer.opacity > 0:
            edits += make_layer_edits(project, layer, run)
    return [replace(edit, step=step) for step, edit in enumerate(edits)]


def hide_layers(project: Project, run: TrainedRun) -> list[LayerEdit]:
    """Return edits that hide layers of the video: behind an object the other layers show, and behind them black."""
    nothing = torch.ones(2, 2, 4)
    background = run.model.layers.background.index
    hidden = [
        LayerEdit(layer, nothing, EVERYWHERE, is_attached=True, is_free_part=True)
        for layer in sorted(project.hidden - {background})
    ]
    if background in project.hidden:
        hidden.append(LayerEdit(background, nothing, EVERYWHERE, adjustment=np.zeros((3, 3), np.float32)))
    return hidden


def make_layer_edits(project: Project, layer: ProjectLayer, run: TrainedRun) -> Iterator[LayerEdit]:
    """Yield the edits of one layer of a project; a file may hold several, with their own blend modes."""
    surface = layer.surface
    if layer.kind == RECOLOR:
        matrix = color_matrix(layer.hue_degrees, layer.saturation, layer.brightness)
        mask, view = torch.ones(2, 2, 4), EVERYWHERE
        if layer.picture is not None:
            mask = torch.from_numpy(read_project_paint(project, layer)[0].rgba)
            view = surface.view(run.model, (mask.shape[1], mask.shape[0]), None)
        yield LayerEdit(layer.layer, mask * layer.opacity, view, adjustment=matrix)
    elif layer.picture is not None:
        for part in read_project_paint(project, layer):
            view = surface.view(run.model, (part.rgba.shape[1], part.rgba.shape[0]), None)
            rgba = torch.from_numpy(part.rgba) * layer.opacity
            yield LayerEdit(layer.layer, rgba, view, is_attached=layer.is_attached, blend=part.blend or layer.blend)
