"""Flow computed elsewhere: .flo, .npy or .npz files named after the frames, as A_B with or without suffixes."""

from pathlib import Path

from command_line import UserError
from media.flows import DamagedFlow, Flow, read_flow

IMPORTABLE = (".flo", ".npy", ".npz")


class ImportedFlow:
    """The flow between two frames, given by their paths, out of a folder of somebody else's files."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; --flow takes a folder of {', '.join(IMPORTABLE)} files")
        self.folder = folder

    def find(self, source: Path, target: Path) -> Path:
        """The file from one frame to another. Raises UserError naming it."""
        names = [f"{source.name}_{target.name}", f"{source.stem}_{target.stem}"]
        found = [self.folder / f"{name}{suffix}" for name in names for suffix in IMPORTABLE]
        if path := next((path for path in found if path.is_file()), None):
            return path
        raise UserError(
            f"{self.folder} has no {names[1]}.flo (or {', '.join(IMPORTABLE[1:])}); name the flow from frame A to "
            "frame B A_B, and have both directions"
        )

    def read(self, source: Path, target: Path, size: tuple[int, int], native: tuple[int, int]) -> Flow:
        """The flow at (width, height), of frames of the native (width, height)."""
        from media.clip import has_same_aspect
        from media.flows import resize_flow

        path = self.find(source, target)
        try:
            flow = read_flow(path)
        except DamagedFlow as error:
            raise UserError(f"{path}: {error}; export it again") from None
        if not has_same_aspect(flow.shape[1::-1], native):
            raise UserError(
                f"{path}: is {flow.shape[1]} x {flow.shape[0]}, the frames are {native[0]} x {native[1]}; "
                "flow must have the frames' aspect"
            )
        return resize_flow(flow, *size)
