"""The folder of a project: its JSON and its pictures, written atomically, and the files that other programs paint."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

import media
from command_line import UserError
from editing.layered_files import LAYERED_SUFFIXES, PaintPart, read_paint
from editing.project import PROJECT_FILE, parse_project, resolve_picture
from media import to_8_bit
from media.videos import CONTAINERS

EXPORTS = "export"  # Folder of exports; further ones have a number behind it.
PICTURES = "pictures"  # Folder of the pictures of a project.
LAYER_PREFIX = "layer_"  # Beginning of the names of the pictures of layers.
PAINT_SUFFIXES = {".png", *LAYERED_SUFFIXES}  # of files that other programs paint
MOST_PIXELS = 100_000_000  # of a picture that somebody brings
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class OutdatedProject(Exception):
    """Another page has saved the project in the meantime."""


class ProjectFolder:
    """The folder of a project. Several requests may use it at the same time."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, Lock()

    @property
    def path(self) -> Path:
        """The project's JSON."""
        return self.folder / PROJECT_FILE

    def load(self) -> dict[str, Any] | None:
        """Read the project; None if there is none yet. Raises UserError if it is damaged.

        Its "revision" counts how often it was saved. It is in the file, so that pages that stay open while the program
        is started again, and a second program, know what they would overwrite.
        """
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.path}: is no JSON; rename it to keep it, and the editor begins a new project"
            ) from None
        parse_project(self.path, values)
        return values

    def save(self, values: Any, revision: int) -> int:
        """Write the project, and return its new revision.

        Pictures of layers that it does not name any more are removed. Raises OutdatedProject if `revision` is not that
        of the project in the file, and UserError for values that cannot be used.
        """
        parse_project(self.path, values)
        with self.lock:
            saved = self.load() or {}
            if revision != find_revision(saved):
                if saved | {"revision": 0} == values | {"revision": 0}:  # Two tabs made the same change.
                    return find_revision(saved)
                raise OutdatedProject
            media.write_text(self.path, json.dumps(values | {"revision": revision + 1}) + "\n")
            named = {layer.get("picture") for layer in values["layers"]}
            for path in (self.folder / PICTURES).glob(f"{LAYER_PREFIX}*.png"):
                if f"{PICTURES}/{path.name}" not in named:
                    path.unlink(missing_ok=True)
            return revision + 1

    def add_picture(self, name: str, content: bytes, is_layer: bool = False) -> str:
        """Keep a picture, and return its name in the project. Equal pictures are kept once.

        is_layer: it shows a layer of paint, and is removed when no layer has it any more. Others are kept, because an
        undo may bring them back. The name follows from the content, so that no page can overwrite what another one has
        saved. Raises UserError if it cannot be read.
        """
        file_name = f"{LAYER_PREFIX if is_layer else ''}{hashlib.sha256(content).hexdigest()[:16]}.png"
        path = media.make_folder(self.folder / PICTURES) / file_name
        picture = decode_picture(name, content)
        with self.lock:
            if not path.is_file():
                with media.write_atomically(path) as temporary:
                    picture.save(temporary, "PNG", compress_level=1)
        return f"{PICTURES}/{file_name}"

    def find_picture(self, name: str) -> Path:
        """Return the path of a picture of the project. Raises UserError if it is outside of its folder, or missing."""
        path = resolve_picture(self.path, name)
        if path.suffix.lower() not in PAINT_SUFFIXES or not path.is_file():
            raise UserError(f"{name}: no such picture in {self.folder}")
        return path

    def find_exported(self, name: str) -> Path:
        """Return the path of an exported video, FOLDER/FILE. Raises UserError if there is none of that name."""
        folder, _, file = name.partition("/")
        path = self.folder / folder / file
        is_export = re.fullmatch(rf"{EXPORTS}(_\d+)?", folder) and file == Path(file).name
        if not is_export or path.suffix not in CONTAINERS or not path.is_file():
            raise UserError(f"{name!r}: no exported video of {self.folder}")
        return path

    def list_paint_files(self) -> list[str]:
        """Return the names of the files in the folder in which other programs may paint."""
        found = (path for path in self.folder.iterdir() if path.suffix.lower() in PAINT_SUFFIXES and path.is_file())
        return sorted(path.name for path in found)

    def read_paint_file(self, name: str) -> list[PaintPart]:
        """Read the paint of a file. Raises UserError if it cannot be read."""
        return read_paint(self.find_picture(name))


def find_project_folder(path: Path) -> Path:
    """Return the folder of a project, which exists then.

    path: the folder or its project.json, or another JSON, such as one that was downloaded from a page of its own: it
    gets a folder beside it, so that nothing else in its folder is touched. Raises UserError if a JSON is missing.
    """
    if path.is_dir() or path.suffix.lower() != ".json":
        return media.make_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the project's JSON, or a folder for a new project")
    if path.name == PROJECT_FILE:
        return path.parent
    folder = path.with_suffix("")
    if not (folder / PROJECT_FILE).is_file():
        folder = media.fresh_folder(folder)
        shutil.copy2(path, folder / PROJECT_FILE)
    print(f"{path} stays as it is; its project goes on in {folder}")
    return folder


def find_revision(project: dict[str, Any] | None) -> int:
    """Return how often a project was saved."""
    revision = (project or {}).get("revision", 0)
    return revision if isinstance(revision, int) else 0


def decode_picture(name: str, content: bytes) -> Image.Image:
    """Decode a picture, RGBA. Raises UserError if it is none, is damaged, or is too large."""
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise UserError(f"{name}: has {picture.width} x {picture.height} pixels, at most 100 million are taken")
            return picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{name}: is no picture that can be read; give a PNG, JPEG or WebP") from None


def encode_part(part: PaintPart) -> bytes:
    """Return paint as PNG, its colours not premultiplied."""
    rgba = part.rgba.copy()
    rgba[..., :3] /= rgba[..., 3:].clip(1e-6)
    stream = io.BytesIO()
    Image.fromarray(to_8_bit(rgba)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
