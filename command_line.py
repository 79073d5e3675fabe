"""Shared by all scripts: settings of the process, user errors, exit codes and common flags.

Imports the standard library only."""

import argparse
import errno
import os
import re
import shlex
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

# Every script imports this module before NumPy. The matrices here are small: NumPy's own threads would only wait for
# work, and keep the cores from the threads that run side by side.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Operations that torch has not for Apple's GPUs run on the CPU; torch prints a line for each of them.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

# A progress bar in a log file would write a line for each step.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")


TYPE_NAMES = {"int": "a whole number", "float": "a number"}  # What messages call argparse's types.
M_ARENA_MAX = -8  # Number of the option of glibc's mallopt that limits how many heaps a process has.


def share_one_heap() -> None:
    """Let all threads take memory from one heap, where the C library is glibc.

    By default each thread gets a heap of its own that keeps freed memory: hundreds of megabytes in threads that work on
    frames. If the user has limited the heaps (MALLOC_ARENA_MAX, or glibc.malloc.arena_max in GLIBC_TUNABLES), that
    stays.
    """
    is_set = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if not is_set and (set_option := find_glibc_function("mallopt")):
        set_option(M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Give memory that is free back to the system, where the C library is glibc.

    By itself glibc keeps what lies below memory that is still used: hundreds of megabytes after a stage of work.
    """
    if trim := find_glibc_function("malloc_trim"):
        trim(0)


def find_glibc_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, or None if it does not have it, as only glibc does."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        return getattr(ctypes.CDLL(None), name)  # type: ignore[no-any-return]
    except (ImportError, OSError, AttributeError):  # no ctypes, no shared C library, or one that is not glibc
        return None


share_one_heap()


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what was found, what was expected, what to do."""


class Stopped(Exception):
    """A run was stopped by Ctrl-C or SIGTERM, after its checkpoint was written. exit_code: 128 + the signal number."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_script(main: Callable[[], None]) -> None:
    """Run the main function of a script and turn its errors into one line on stderr and an exit code.

    Exit codes are 0 (done), 2 (wrong input or a disk error), 130 (Ctrl-C) and 143 (SIGTERM).
    """
    try:
        main()
    except UserError as error:
        exit_with(f"error: {error}", 2)
    except Stopped as stop:
        exit_with(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        exit_with("stopped by Ctrl-C; unfinished files were removed, finished ones kept", 130)
    except OSError as error:
        if error.errno is None:  # no error of the system
            raise
        path = error.filename or "the output folder"
        is_too_long = error.errno == errno.ENAMETOOLONG
        remedy = "use shorter names" if is_too_long else "check its permissions and the free space"
        exit_with(f"error: cannot read or write {path}: {error.strerror}; {remedy}", 2)


def quote(path: Path | str) -> str:
    """Return a path as it is written in a command that somebody copies into a terminal."""
    text = str(path)
    return f'"{text}"' if os.name == "nt" else shlex.quote(text)


def exit_with(message: str, exit_code: int) -> NoReturn:
    """Print one line to stderr and end the process."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(exit_code)


def warn(message: str) -> None:
    """Print one line to stderr about input that is accepted but probably not intended."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def resolve_folder_name(folder: Path) -> Path:
    """Return a folder whose path ends with a name: `.` and `..` are replaced by the folders they stand for."""
    return folder if folder.name not in ("", "..") else folder.resolve()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as those of all other wrong input are."""

    def error(self, message: str) -> NoReturn:
        """Print the error and how to see all flags, and exit with code 2."""
        plain = re.sub(
            r"invalid (int|float) value: (.+)", lambda found: f"{found[2]} is not {TYPE_NAMES[found[1]]}", message
        )
        exit_with(f"error: {plain}; {self.suggest_flags(plain)}{self.prog} --help shows all flags", 2)

    def suggest_flags(self, message: str) -> str:
        """Return a question whether known flags were meant, if the message names flags that are not known."""
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.findall(r"(?<!\S)--[^\s=]+", message) if message.startswith("unrecognized arguments") else []
        similar = [similar for flag in unknown for similar in get_close_matches(flag, known, n=1)]
        return f"did you mean {' and '.join(similar)}? " if similar else ""


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return an argument parser whose help shows a description, the flags and an example command."""
    return Parser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_frame_pixel(text: str) -> tuple[float, float, int]:
    """Parse X,Y,FRAME as (x, y, frame number), x and y in pixels. Raises ArgumentTypeError for other text."""
    try:
        x, y, t = text.split(",")
        return float(x), float(y), int(t)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected X,Y,FRAME such as 320,200,0") from None


def check_seconds(options: argparse.Namespace, *names: str) -> None:
    """Raise UserError for flags of these names whose value is given, but is no finite number of seconds above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}, expected seconds above 0")


def check_writable(folder: Path) -> None:
    """Raise UserError if a folder that is written later cannot be made, or if nothing may be written into it."""
    folder = folder.absolute()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is None:
        raise UserError(f"{folder}: there is no such drive; give another folder")
    if not existing.is_dir():
        raise UserError(f"{existing}: is a file, and {folder} has to be a folder; give another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing}: nothing may be written there; check its permissions, or give another folder")


def add_trained_run_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags of all scripts that read a finished run and write into a folder."""
    add_clip_flags(flags)
    flags.add_argument(
        "--output_folder",
        type=Path,
        required=True,
        help="where to write; made if absent. If it holds files already, a numbered folder beside it is used instead",
    )
    flags.add_argument("--fps", type=float, help="frames per second of the videos (default: the clip's own)")
    flags.add_argument(
        "--alpha_range",
        choices=("full", "published"),
        help="full: opacity reaches 0 and 1; published: [0.001, 0.991], to compare with the published code "
        "(default: the run's config)",
    )
    add_device_flag(flags)


def add_clip_flags(flags: argparse.ArgumentParser) -> None:
    """Add the flags that say where a finished run and its clip are."""
    flags.add_argument(
        "--trained_model_folder", type=Path, required=True, help="folder of a run, with config.json and checkpoint"
    )
    flags.add_argument("--video_name", help="name of the clip (default: the one that the run was trained on)")
    flags.add_argument(
        "--data_folder", type=Path, help="folder that holds the clip's folder (default: the one used for training)"
    )


def add_device_flag(flags: argparse.ArgumentParser) -> None:
    """Add the flag that chooses the device; `unwrap_utils.pick_device` checks its value."""
    flags.add_argument("--device", help="cpu, cuda or cuda:1, for instance (default: the GPU if there is one)")


def open_run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `rendering.trained_run.open_run` from the flags of `add_trained_run_flags`."""
    return {
        "folder": options.trained_model_folder,
        "video_name": options.video_name,
        "data_folder": options.data_folder,
        "fps": options.fps,
        "alpha_range": options.alpha_range,
        "device": options.device,
    }
