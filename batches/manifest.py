"""The list of clips that are to be unwrapped: the rows of a CSV file, or what lies in a folder."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import media
from command_line import UserError

INPUT, NAME = "input", "name"
# Columns besides these two are flags of unwrap_video.py: with one value, with several values, and without a value.
VALUE_COLUMNS = (
    *("class_name", "masks", "mask_kind", "method", "objects", "text", "candidate", "mask_weights"),
    *(
        "flow_method",
        "flow_weights",
        "time_budget",
        "time_per_100_frames",
        "start",
        "end",
        "deinterlace",
        "every",
        "max_long_edge",
    ),
    *("max_frames", "strokes", "device"),
)
LIST_COLUMNS = ("point", "negative", "box")
SWITCH_COLUMNS = ("allow_cuts", "full_evaluation")
PATH_COLUMNS = ("masks", "mask_weights", "flow_weights", "strokes")  # are relative to the folder of the manifest
COLUMNS = (INPUT, NAME, *VALUE_COLUMNS, *LIST_COLUMNS, *SWITCH_COLUMNS)
YES, NO = ("1", "true", "yes"), ("", "0", "false", "no")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".mxf", ".ts")
SIDE_FOLDERS = ("_flow", "_maskrcnn", "_gt", "_strokes")  # Ends of the names of folders beside a clip's frames.


@dataclass(frozen=True)
class ClipTask:
    """A clip that is to be unwrapped."""

    name: str  # of its folder in the output
    source: Path  # a video, or a folder of frames
    flags: tuple[str, ...]  # further flags of unwrap_video.py

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with the task."""
        return sha256("\0".join((str(self.source), *self.flags)).encode()).hexdigest()[:16]


def read_tasks(path: Path, defaults: Sequence[str] = ()) -> list[ClipTask]:
    """Read the clips of a CSV file or a folder. defaults: COLUMN=VALUE for all clips that say nothing else.

    Raises UserError for a missing or empty list, unknown columns, missing clips, and names that occur twice.
    """
    values = dict(parse_default(text) for text in defaults)
    if path.is_dir():
        tasks = [make_task(path, {INPUT: each.name} | values, str(path)) for each in list_clips(path)]
        remedy = f"put videos ({', '.join(VIDEO_SUFFIXES)}) or folders of frames into it"
    elif path.is_file():
        tasks, remedy = read_manifest(path, values), "add a row for each clip"
    else:
        raise UserError(f"{path}: no such file or folder; give a CSV with a column {INPUT}, or a folder of clips")
    if not tasks:
        raise UserError(f"{path}: holds no clips; {remedy}")
    seen: dict[str, ClipTask] = {}
    for task in tasks:
        if task.name.lower() in seen:
            raise UserError(
                f"{path}: two clips are named {task.name} ({seen[task.name.lower()].source} and {task.source}); give "
                f"one of them another name in the column {NAME}"
            )
        seen[task.name.lower()] = task
    return tasks


def parse_default(text: str) -> tuple[str, str]:
    """Return the column and the value of COLUMN=VALUE. Raises UserError for other text and unknown columns."""
    column, equals, value = text.partition("=")
    if not equals or column not in COLUMNS or column in (INPUT, NAME):
        known = ", ".join(COLUMNS[2:])
        raise UserError(f"--set {text}: expected COLUMN=VALUE, where COLUMN is one of {known}")
    return column, value


def list_clips(folder: Path) -> list[Path]:
    """Return the videos and the folders of frames in a folder, sorted by name."""

    def is_clip(path: Path) -> bool:
        if path.is_dir():
            is_side = path.name.endswith(SIDE_FOLDERS) or path.name.startswith(".")
            return not is_side and bool(media.list_images(path))
        return path.suffix.lower() in VIDEO_SUFFIXES

    return sorted(path for path in folder.iterdir() if is_clip(path))


def read_manifest(path: Path, defaults: dict[str, str]) -> list[ClipTask]:
    """Read the rows of a CSV file. Raises UserError for columns or values that cannot be used."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), [column.strip() for column in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV file ({error}); save it as CSV with the encoding UTF-8") from None
    if INPUT not in columns:
        raise UserError(f"{path}: has no column {INPUT} (found: {', '.join(columns) or 'none'}); name each clip in it")
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise UserError(f"{path}: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    tasks = []
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise UserError(f"{path}, line {number}: has not as many cells as the first line; add or remove commas")
        cells = {key.strip(): value.strip() for key, value in row.items() if value.strip()}
        if cells:
            tasks.append(make_task(path.parent, defaults | cells, f"{path}, line {number}"))
    return tasks


def make_task(folder: Path, cells: dict[str, str], place: str) -> ClipTask:
    """Return the task of a row. folder: to which paths are relative. place: where the row is, for messages.

    Raises UserError for values that cannot be used.
    """
    if INPUT not in cells:
        raise UserError(f"{place}: the cell {INPUT} is empty; name a video or a folder of frames")
    source = (folder / cells[INPUT]).absolute()  # Not where a link leads: masks and flow lie beside the link.
    if not source.exists():
        raise UserError(f"{place}: {source}: no such file or folder; correct the cell {INPUT}")
    name = cells.get(NAME, source.name if source.is_dir() else source.stem)
    if name != Path(name).name or name in ("", ".", ".."):
        raise UserError(f"{place}: the name {name!r} is no name of a folder; leave out slashes")
    flags: list[str] = []
    for column, value in cells.items():
        if column in LIST_COLUMNS:
            flags += [f"--{column}={each.strip()}" for each in value.split(";")]
        elif column in SWITCH_COLUMNS:
            if value.lower() not in YES + NO:
                raise UserError(f"{place}: {column} is {value!r}, expected yes or no")
            flags += [f"--{column}"] if value.lower() in YES else []
        elif column in VALUE_COLUMNS and value:
            flags.append(f"--{column}={(folder / value).absolute() if column in PATH_COLUMNS else value}")
    return ClipTask(name, source, tuple(flags))
