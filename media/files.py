"""Files and folders: nothing half-written under its final name, nothing overwritten."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import UserError, resolve_folder_name


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Make a folder where there is none. Raises UserError if a file is in its place."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, a folder of that name is to be written; move it away")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_folder(folder: Path) -> Path:
    """Make `folder`; if it holds files already, make the first free `folder_2`, `folder_3`, ... instead."""
    folder = candidate = resolve_folder_name(folder)
    number = 2
    while candidate.is_dir() and any(candidate.iterdir()):
        candidate, number = folder.with_name(f"{folder.name}_{number}"), number + 1
    return make_folder(candidate)
