"""Read flow that another program computed: .flo, .npy or .npz files named A_B after the frames."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from command_line import UserError
from media.clip import has_same_aspect
from media.flows import DamagedFlow, read_flow, resize_flow

Floats = NDArray[np.floating]

IMPORTABLE_SUFFIXES = (".flo", ".npy", ".npz")


class ImportedFlow:
    """A folder of flow files of another program. A and B in the names are the frames' names, with or without suffix."""

    def __init__(self, folder: Path):
        """Open the folder. Raise UserError if it does not exist."""
        if not folder.is_dir():
            suffixes = ", ".join(IMPORTABLE_SUFFIXES)
            raise UserError(f"{folder}: no such folder; --flow takes a folder of {suffixes} files")
        self.folder = folder

    def find_file(self, source: Path, target: Path) -> Path:
        """Return the file of the flow from one frame to another. Raise UserError if there is none."""
        names = [f"{source.name}_{target.name}", f"{source.stem}_{target.stem}"]
        candidates = [self.folder / f"{name}{suffix}" for name in names for suffix in IMPORTABLE_SUFFIXES]
        if path := next((path for path in candidates if path.is_file()), None):
            return path
        raise UserError(
            f"{self.folder} has no {names[1]}.flo (or {', '.join(IMPORTABLE_SUFFIXES[1:])}); name the flow from "
            "frame A to frame B A_B, and provide both directions"
        )

    def read(self, source: Path, target: Path, size: tuple[int, int], native_size: tuple[int, int]) -> Floats:
        """Return the flow (H, W, 2) from one frame to another, resized to `size`, in pixels (dx, dy) of that size.

        size, native_size: (width, height) to return, and of the frames. Raise UserError if the file is missing or
        damaged, or if its aspect differs from the aspect of the frames.
        """
        path = self.find_file(source, target)
        try:
            flow = read_flow(path)
        except DamagedFlow as error:
            raise UserError(f"{path}: {error}; export it again") from None
        height, width = flow.shape[:2]
        if not has_same_aspect((width, height), native_size):
            raise UserError(
                f"{path}: is {width} x {height}, the frames are {native_size[0]} x {native_size[1]}; "
                "flow must have the frames' aspect"
            )
        return resize_flow(flow, *size)
