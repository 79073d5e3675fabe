"""A finished run, opened to evaluate, edit or export."""

from dataclasses import dataclass
from pathlib import Path

import torch

from command_line import UserError
from config import Config, load_config
from grids.model import GridModel
from grids.windows import WindowedModel
from implicit_neural_networks import AtlasModel, Model, check_object_count
from media.checkpoints import read_checkpoint
from media.clip import Clip, open_clip
from unwrap_utils import pick_device


@dataclass
class TrainedRun:
    """A model and the clip on which it was trained: the input of evaluating, editing and exporting."""

    model: Model
    clip: Clip
    full_range: bool = True  # rendered opacity reaches 0 and 1; False: it has the published range
    checkpoint: Path = Path("checkpoint")  # the file from which the model was loaded

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.checkpoint.resolve().parent.name

    @property
    def px_per_uv(self) -> list[float]:
        """Pixels at working size per unit of uv, for each layer."""
        return [self.model.px_per_uv(layer.index, self.clip.size) for layer in self.model.layers]


def open_run(
    folder: Path,
    *,
    video_name: str | None = None,
    data_folder: Path | None = None,
    fps: float | None = None,
    alpha_range: str | None = None,
    device: str | None = None,
) -> TrainedRun:
    """Open a run's folder, which holds config.json and checkpoint, and the run's clip.

    video_name and data_folder: the frames are in data_folder/video_name. fps: frames per second of the videos to
    write. alpha_range: "full" or "published". Each of these is taken from the run's config if it is None. device: None
    takes the GPU if there is one. Raises UserError if the run, its config or its frames cannot be used.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder that train.py wrote, with config.json and checkpoint")
    if fps is not None and not 0 < fps < 1000:
        raise UserError(f"--fps is {fps}, expected frames per second above 0 and below 1000")
    if missing := [name for name in ("config.json", "checkpoint") if not (folder / name).is_file()]:
        raise UserError(f"{folder}: has no {missing[0]}, so it is no run; give a folder that train.py wrote")
    config = load_config(folder / "config.json")
    training_frames = Path(config.data_folder)
    frames = (data_folder or training_frames.parent) / (video_name or training_frames.name)
    if not frames.is_dir():
        raise UserError(f"{frames}: no such folder of frames; give their place with --data_folder and --video_name")
    model = load_model(folder / "checkpoint", config, pick_device(device))
    full_range = (alpha_range or config.alpha_range) == "full"
    return TrainedRun(model, open_clip(frames, config, fps), full_range, folder / "checkpoint")


def load_model(path: Path, config: Config, device: torch.device) -> Model:
    """Load the model of a checkpoint, of either representation, ready to render.

    Raises UserError that names what is missing in the checkpoint or does not fit the config.
    """
    checkpoint = read_checkpoint(path, device)
    if "windows" in checkpoint:
        windowed = WindowedModel.from_checkpoint(checkpoint, path, device)
        check_object_count(path, len(windowed.layers.foregrounds), config)
        return windowed
    if "windowed_learner" in checkpoint:
        raise UserError(
            f"{path}: the run was stopped before all windows of its long clip were started; continue it with "
            f"python train.py --resume {path.parent}"
        )
    if config.representation == "grid":
        grid_model = GridModel.from_checkpoint(checkpoint, path)
        check_object_count(path, len(grid_model.layers.foregrounds), config)
        return grid_model.to(device).eval()
    model = AtlasModel(config).to(device)
    model.load_checkpoint(checkpoint, path)
    return model.eval()
