"""Record in NAME_maskrcnn.json, beside the masks, how they were found, and check whether they changed since then.

Training needs this to tell the masks of a detector, which look steady even where they are wrong, from masks that
somebody made carefully."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import warn
from media.clip import Clip
from media.files import write_text
from media.images import list_images

# Where masks come from: a method of ours found them, and they are unchanged since; somebody brought them, or clicked on
# the object; or nothing is known of them.
SOURCES = ("found", "brought", "unknown")


def mask_note_path(folder: Path) -> Path:
    """Return the path of the note on the masks in NAME_maskrcnn and in the folders of its single objects."""
    return folder.with_name(f"{folder.name}.json")


def write_mask_note(folder: Path, request: dict[str, str], found: Sequence[Path], quality: dict[str, Any]) -> None:
    """Write the note on the masks in NAME_maskrcnn.

    request: the options with which the masks were requested. found: the folders in which every mask was found by a
    method. quality: more entries of the note. Entries on other folders stay in the note. If the file exists but is not
    such a note, leave it unchanged and print a warning.
    """
    path = mask_note_path(folder)
    if path.exists() and read_mask_request(folder) is None:
        warn(
            f"{path} is not a note on masks, so how these masks were found is not recorded; "
            "move the file away to have it recorded"
        )
        return
    fingerprints = read_fingerprints(folder) | {
        folder_suffix(folder, masks): folder_fingerprint(masks) for masks in found
    }
    note = {"asked": request, "found": fingerprints} | quality
    write_text(path, json.dumps(note, indent=2) + "\n")


def read_mask_request(folder: Path) -> dict[str, str] | None:
    """Return the options with which the masks in NAME_maskrcnn were requested; None if they are not recorded."""
    request = read_mask_note(folder).get("asked")
    return request if isinstance(request, dict) else None


def read_mask_sources(clip: Clip) -> list[str]:
    """Return for each object of a clip where its masks come from, one of SOURCES."""
    folder = clip.sibling_folder("_maskrcnn")
    return [mask_source(folder, paths[0].parent) for paths in clip.object_masks]


def mask_source(folder: Path, masks: Path) -> str:
    """Return where the masks in a folder come from, one of SOURCES.

    folder: NAME_maskrcnn. masks: the same folder, or that of a single object. Masks that were brought stay so, whatever
    somebody changes in them.
    """
    if are_found(folder, masks):
        return "found"
    is_imported = (read_mask_request(folder) or {}).get("method") == "import"
    return "brought" if is_imported or read_mask_note(folder).get("used") in ("import", "sam2", "sam3") else "unknown"


def are_found(folder: Path, masks: Path) -> bool:
    """Return whether all masks in a folder were found by a method and are unchanged since then.

    folder: NAME_maskrcnn. masks: the same folder, or that of a single object.
    """
    fingerprint = read_fingerprints(folder).get(folder_suffix(folder, masks))
    return fingerprint is not None and fingerprint == folder_fingerprint(masks)


def read_fingerprints(folder: Path) -> dict[str, int]:
    """Return the recorded fingerprints of the folders whose masks were found by a method, by the folder's suffix."""
    fingerprints = read_mask_note(folder).get("found")
    return fingerprints if isinstance(fingerprints, dict) else {}


def folder_suffix(folder: Path, masks: Path) -> str:
    """Return the suffix of a single object's folder after the name of NAME_maskrcnn; empty for NAME_maskrcnn itself.

    The note uses suffixes instead of names so that it stays right if the clip is renamed.
    """
    return masks.name.removeprefix(folder.name)


def read_mask_note(folder: Path) -> dict[str, Any]:
    """Return the note on the masks in NAME_maskrcnn; empty if there is none or if the file is something else."""
    try:
        note = json.loads(mask_note_path(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def folder_fingerprint(folder: Path) -> int:
    """Return a checksum (CRC-32) of the names and the contents of the images in a folder."""
    checksum = 0
    for path in list_images(folder):
        checksum = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), checksum))
    return checksum
