"""The folder of a project: its JSON and its pictures, written atomically, and the files that other programs paint."""

import hashlib
import io
import json
import re
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image

import media
from command_line import UserError
from editing.layered_files import LAYERED_SUFFIXES, PaintPart, read_paint
from editing.project import PROJECT_FILE, parse_project, resolve_picture
from media import to_8_bit

PICTURES = "pictures"  # Folder of the pictures of a project.
LAYER_PICTURE = re.compile(r"[a-z0-9]{1,32}\.png")  # Names that the page may choose.
PAINT_SUFFIXES = {".png", *LAYERED_SUFFIXES}  # of files that other programs paint
MOST_PIXELS = 100_000_000  # of a picture that somebody brings
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class OutdatedProject(Exception):
    """Another page has saved the project in the meantime."""


class ProjectFolder:
    """The folder of a project. Several requests may use it at the same time."""

    def __init__(self, folder: Path):
        self.folder, self.lock = folder, Lock()
        self.revision = 0  # of the project in the file, which it keeps, too: pages stay open while the program restarts

    @property
    def path(self) -> Path:
        """The project's JSON."""
        return self.folder / PROJECT_FILE

    def load(self) -> dict[str, Any] | None:
        """Read the project; None if there is none yet. Raises UserError if it is damaged."""
        if not self.path.is_file():
            return None
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(
                f"{self.path}: is no JSON; rename it to keep it, and the editor begins a new project"
            ) from None
        parse_project(self.path, values)
        revision = values.get("revision", 0)
        self.revision = revision if isinstance(revision, int) else 0
        return values

    def save(self, values: Any, revision: int) -> int:
        """Write the project, and return its new revision.

        Raises OutdatedProject if `revision` is not that of the last save, and UserError for values that cannot be used.
        """
        parse_project(self.path, values)
        with self.lock:
            if revision != self.revision:
                raise OutdatedProject
            media.write_text(self.path, json.dumps(values | {"revision": revision + 1}) + "\n")
            self.revision = revision + 1
            return self.revision

    def save_layer_picture(self, name: str, content: bytes) -> str:
        """Write the picture of a layer, and return its name in the project. Raises UserError for other names."""
        if not LAYER_PICTURE.fullmatch(name):
            raise UserError(f"{name!r} is no name for a picture of a layer")
        return self.write_picture(f"layer_{name}", decode_picture(name, content))

    def add_picture(self, name: str, content: bytes) -> str:
        """Keep a picture that somebody brings, and return its name in the project. Equal pictures are kept once.

        Raises UserError if it cannot be read.
        """
        picture = decode_picture(name, content)
        return self.write_picture(f"{hashlib.sha256(content).hexdigest()[:16]}.png", picture)

    def write_picture(self, name: str, picture: Image.Image) -> str:
        """Write a picture as PNG, and return its name in the project."""
        path = media.make_folder(self.folder / PICTURES) / name
        with media.write_atomically(path) as temporary:
            picture.save(temporary, "PNG", compress_level=1)
        return f"{PICTURES}/{name}"

    def find_picture(self, name: str) -> Path:
        """Return the path of a picture of the project. Raises UserError if it is outside of its folder, or missing."""
        path = resolve_picture(self.path, name)
        if path.suffix.lower() not in PAINT_SUFFIXES or not path.is_file():
            raise UserError(f"{name}: no such picture in {self.folder}")
        return path

    def list_paint_files(self) -> list[str]:
        """Return the names of the files in the folder in which other programs may paint."""
        found = (path for path in self.folder.iterdir() if path.suffix.lower() in PAINT_SUFFIXES and path.is_file())
        return sorted(path.name for path in found)

    def read_paint_file(self, name: str) -> list[PaintPart]:
        """Read the paint of a file. Raises UserError if it cannot be read."""
        return read_paint(self.find_picture(name))


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
