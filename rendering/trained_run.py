"""A finished run, opened to evaluate, edit or export."""

from dataclasses import dataclass
from pathlib import Path

import torch

from command_line import UserError
from config import load_config
from implicit_neural_networks import Model
from media.clip import Clip, open_clip
from rendering.models import load_model
from unwrap_utils import pick_device


@dataclass
class TrainedRun:
    """A model with the clip that it was trained on: what evaluating, editing and exporting take."""

    model: Model
    clip: Clip
    full_range: bool = True  # rendered opacity reaches 0 and 1; False: the published range
    checkpoint: Path = Path("checkpoint")  # the file that the model comes from

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.checkpoint.resolve().parent.name

    @property
    def px_per_uv(self) -> list[float]:
        """Working pixels per unit of uv, for each layer."""
        return [self.model.px_per_uv(layer.index, self.clip.size) for layer in self.model.layers]


def open_run(
    folder: Path,
    *,
    video_name: str | None = None,
    data_folder: Path | None = None,
    fps: float | None = None,
    alpha_range: str | None = None,
    device: torch.device | None = None,
) -> TrainedRun:
    """Open a run's folder (config.json and checkpoint) and its clip. What is None comes from the run's config.

    video_name, data_folder: where the frames are. fps: of the videos written. alpha_range: "full" or "published".
    device: None takes the GPU if there is one. Raises UserError.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder that train.py wrote, with config.json and checkpoint")
    if fps is not None and not 0 < fps < 1000:
        raise UserError(f"--fps is {fps}, expected frames per second above 0")
    config = load_config(folder / "config.json")
    trained_on = Path(config.data_folder)
    frames = (data_folder or trained_on.parent) / (video_name or trained_on.name)
    if not frames.is_dir():
        raise UserError(f"{frames}: no such folder of frames; say where they are with --data_folder and --video_name")
    model = load_model(folder / "checkpoint", config, device or pick_device())
    full_range = (alpha_range or config.alpha_range) == "full"
    return TrainedRun(model, open_clip(frames, config, fps), full_range, folder / "checkpoint")
