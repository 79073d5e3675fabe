"""NAME_maskrcnn.json, beside the masks: how they were found, and whether they still are what was found.

So training can tell a detector's masks, which look steady even where they are wrong, from somebody's careful ones."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import warn
from media.clip import Clip
from media.files import write_text
from media.images import list_images


def mask_note_path(folder: Path) -> Path:
    """Where the note on NAME_maskrcnn, and on the folders of its single objects, lies."""
    return folder.with_name(f"{folder.name}.json")


def write_mask_note(folder: Path, asked: dict[str, str], found: Sequence[Path], quality: dict[str, Any]) -> None:
    """Note what was asked for, which folders hold nothing but what a method found, and how good it is.

    What was noted of other folders stays. A file of that name that is no such note is kept, with a warning.
    """
    if mask_note_path(folder).exists() and read_mask_request(folder) is None:
        warn(f"{mask_note_path(folder)} is there and says something else; how these masks were found is not noted")
        return
    fingerprints = detected_fingerprints(folder) | {
        folder_suffix(folder, each): folder_fingerprint(each) for each in found
    }
    note = {"asked": asked, "found": fingerprints} | quality
    write_text(mask_note_path(folder), json.dumps(note, indent=2) + "\n")


def read_mask_request(folder: Path) -> dict[str, str] | None:
    """What was asked for when masks were found; None if nobody noted it."""
    asked = read_mask_note(folder).get("asked")
    return asked if isinstance(asked, dict) else None


def masks_found_by_method(clip: Clip) -> list[bool]:
    """For each object of a clip, whether a method of ours found its masks; False if nothing is known of them."""
    return [are_found(clip.sibling_folder("_maskrcnn"), paths[0].parent) for paths in clip.object_masks]


def are_found(folder: Path, masks: Path) -> bool:
    """Whether `masks`, the folder itself or that of a single object, holds what a method found, untouched since."""
    noted = detected_fingerprints(folder).get(folder_suffix(folder, masks))
    return noted is not None and noted == folder_fingerprint(masks)


def detected_fingerprints(folder: Path) -> dict[str, int]:
    """The fingerprints of folders when a method had found their masks, by suffix."""
    found = read_mask_note(folder).get("found")
    return found if isinstance(found, dict) else {}


def folder_suffix(folder: Path, masks: Path) -> str:
    """What tells a single object's folder from that of all: nothing for the latter. A clip may be renamed."""
    return masks.name.removeprefix(folder.name)


def read_mask_note(folder: Path) -> dict[str, Any]:
    """The note; empty without one, or if somebody wrote something else there."""
    try:
        note = json.loads(mask_note_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def folder_fingerprint(folder: Path) -> int:
    """A number that changes with the pictures in a folder, or their names."""
    number = 0
    for path in list_images(folder):
        number = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), number))
    return number
