"""NAME_maskrcnn.json, beside the masks: how they were found, and whether they still are what was found.

So training can tell a detector's masks, which look steady even where they are wrong, from somebody's careful ones.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from media.files import write_text
from media.images import list_images


def note_path(folder: Path) -> Path:
    """Where the note on NAME_maskrcnn, and on the folders of its single objects, lies."""
    return folder.with_name(f"{folder.name}.json")


def write_note(folder: Path, asked: dict[str, str], found: Sequence[Path], quality: dict[str, Any]) -> None:
    """Note what was asked for, which folders hold nothing but what a method found, and how good it is."""
    prints = {"found": {each.name: fingerprint(each) for each in found}} if found else {}
    write_text(note_path(folder), json.dumps({"asked": asked} | prints | quality, indent=2) + "\n")


def asked_for(folder: Path) -> dict[str, str] | None:
    """What was asked for when masks were found; None if nobody noted it."""
    asked = read_note(folder).get("asked")
    return asked if isinstance(asked, dict) else None


def are_found(folder: Path, masks: Path) -> bool:
    """Whether `masks`, the folder itself or that of a single object, holds what a method found, untouched since."""
    found = read_note(folder).get("found")
    return isinstance(found, dict) and masks.name in found and found[masks.name] == fingerprint(masks)


def read_note(folder: Path) -> dict[str, Any]:
    """The note; empty without one, or if somebody wrote something else there."""
    try:
        note = json.loads(note_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def fingerprint(folder: Path) -> int:
    """A number that changes with the pictures in a folder, or their names."""
    number = 0
    for path in list_images(folder):
        number = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), number))
    return number
