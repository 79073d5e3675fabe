"""Files and folders: no file is half-written under its final name, and no folder with content is overwritten."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from command_line import UserError, resolve_folder_name

USUAL_NAME_BYTES = 255  # Most file systems allow that many in a name.
DECORATION_BYTES = 64  # What a run adds to the name of a clip at most: "_maskrcnn_candidates.png", a date, a suffix.
FLOW_BYTES = 8  # What the name of a flow file adds to those of two frames.


def longest_name(folder: Path) -> int:
    """Return how many bytes a file name may have in a folder, which need not exist yet."""
    existing = next((path for path in (folder, *folder.resolve().parents) if path.is_dir()), Path())
    try:
        return os.pathconf(existing, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows does not know the function, some systems not the name.
        return USUAL_NAME_BYTES


def fit_clip_name(name: str, folder: Path, suffix_bytes: int = 0) -> str:
    """Return a clip's name, shortened if the files that are named after it would not fit into the file system.

    suffix_bytes: bytes to leave for what is added to the name.
    """
    most = longest_name(folder) - DECORATION_BYTES - suffix_bytes
    while len(os.fsencode(name)) > most:
        name = name[:-1].rstrip()
    return name


def check_names(folder: Path, files: Sequence[Path]) -> None:
    """Raise UserError if the name of a clip's folder or of its frames is so long that other files cannot be written.

    Those are named after the folder, and optical flow after two frames.
    """
    if fit_clip_name(folder.name, folder) != folder.name:
        raise UserError(
            f"{folder}: the folder's name has {len(os.fsencode(folder.name))} bytes, and files that are named after "
            f"it would not fit; give it a name of at most {longest_name(folder) - DECORATION_BYTES} bytes"
        )
    longest = max((len(os.fsencode(path.name)) for path in files), default=0)
    most = (longest_name(folder) - FLOW_BYTES) // 2
    if longest > most:
        raise UserError(
            f"{folder}: the names of its pictures have up to {longest} bytes, and the optical flow is named after two "
            f"of them; rename them to at most {most} bytes, such as 00000.png"
        )


def temporary_path(path: Path) -> Path:
    """Return the hidden path beside `path` under which a file is written until it is complete.

    Its name is short, because that of `path` may be as long as the file system allows.
    """
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:12]
    return path.with_name(f".{digest}.{os.getpid()}.part{path.suffix}")


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` if the block ends without an error.

    The temporary file is removed if the block raises.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. After an error an older file of that name is unchanged."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Make a folder and its parents if they do not exist, and return it. Raises UserError if a file has that name."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, a folder of that name is to be written; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_folder(folder: Path) -> Path:
    """Make an empty folder and return it: `folder`, or the first free `folder_2`, `folder_3`, ... if it has content.

    It says so if it is not the folder that was asked for.
    """
    folder = candidate = resolve_folder_name(folder)
    number = 2
    while candidate.is_dir() and any(candidate.iterdir()):
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    if candidate != folder:
        print(f"{folder} holds files already, which stay as they are: the new ones go to {candidate}", flush=True)
    return make_folder(candidate)
