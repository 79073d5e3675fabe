"""What every script shares: mistakes a user can mend, exit codes, common flags. Standard library only."""

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISK_ERRORS = {  # what a full disk, a missing right or a failing encoder raise
    errno.EACCES,
    errno.EIO,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
}


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was found, what was expected, what to do."""


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM) and everything worth keeping is on disk."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main and end the process: 0 done, 2 wrong input, 130/143 stopped by a signal."""
    try:
        main()
    except UserError as error:
        exit_with(f"error: {error}", 2)
    except Stopped as stop:
        exit_with(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        exit_with("stopped by Ctrl-C; unfinished files were removed, finished ones kept", 130)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = error.filename or "the output folder"
        exit_with(f"error: cannot read or write {where}: {error.strerror}; check its permissions and the free space", 2)


def exit_with(message: str, exit_code: int) -> None:
    """Print one line to stderr and leave."""
    print(message, file=sys.stderr, flush=True)
    sys.exit(exit_code)


def warn(message: str) -> None:
    """One line to stderr about something accepted but probably not meant."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def resolve_folder_name(folder: Path) -> Path:
    """A folder that has a name: `.` and `..` become what they stand for."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def make_parser(description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser with the house's look: what it does, the flags with their defaults, an example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def pixel_of_frame(text: str) -> tuple[float, float, int]:
    """A flag's X,Y,FRAME as numbers."""
    try:
        x, y, t = text.split(",")
        return float(x), float(y), int(t)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, expected X,Y,FRAME such as 320,200,0") from None


def add_trained_run_flags(flags: argparse.ArgumentParser) -> None:
    """The flags of the two scripts that read a finished run."""
    flags.add_argument(
        "--trained_model_folder", type=Path, required=True, help="a run's folder: holds config.json and checkpoint"
    )
    flags.add_argument("--video_name", help="name of the clip (default: the one that the run was trained on)")
    flags.add_argument(
        "--data_folder", type=Path, help="folder that holds the clip's folder (default: the one used for training)"
    )
    flags.add_argument(
        "--output_folder",
        type=Path,
        required=True,
        help="where to write; made if absent. A folder that holds files already is left alone: "
        "a numbered one beside it is used instead",
    )
    flags.add_argument("--fps", type=float, help="frames per second of the videos (default: the clip's own)")
    flags.add_argument(
        "--alpha_range",
        choices=("full", "published"),
        help="full: opacity reaches 0 and 1; published: [0.001, 0.991], to compare with the published code "
        "(default: the run's config)",
    )


def open_run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `rendering.trained_run.open_run`, from the flags above."""
    return {
        "folder": options.trained_model_folder,
        "video_name": options.video_name,
        "data_folder": options.data_folder,
        "fps": options.fps,
        "alpha_range": options.alpha_range,
    }
