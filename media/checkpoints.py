"""Read and write the checkpoints of runs: files of torch with a format number, which execute nothing when read."""

import io
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from command_line import UserError
from media.files import write_atomically

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# what torch.load raises for a damaged file
LOAD_ERRORS = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, OSError, UnpicklingError)
CHECKPOINT_FORMAT = 1  # increase it when older code cannot read new checkpoints; published ones state no format


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the dict in a checkpoint file, without executing any code in it. Raises UserError if the file is damaged."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; give the folder that train.py wrote (it holds config.json too)")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except LOAD_ERRORS:
        raise UserError(f"{path}: not a checkpoint, or cut short; restore it or train again") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds {type(checkpoint).__name__}, expected the dict that train.py writes")
    if (file_format := checkpoint.get("format", 1)) > CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: has checkpoint format {file_format}, this version reads formats up to {CHECKPOINT_FORMAT}; "
            "use the version of this project that wrote it, or a newer one"
        )
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint with its format number.

    After an error, such as OSError for a full disk, the previous checkpoint is unchanged.
    """
    with write_atomically(path) as temporary, CheckpointFile(io.FileIO(temporary, "wb")) as file:
        try:
            torch.save(checkpoint | {"format": CHECKPOINT_FORMAT}, file)
        except RuntimeError as error:
            raise file.error or error from None
        file.flush()
        os.fsync(file.fileno())


class CheckpointFile(io.BufferedWriter):
    """A file that keeps an error of writing, because torch.save replaces it by one that says nothing of the disk."""

    error: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        """Write data. Return the number of bytes."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise
