"""Files and folders: no file is half-written under its final name, and no folder with content is overwritten."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import UserError, resolve_folder_name


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
