"""The trained model of a run, whichever its representation."""

from pathlib import Path

import torch

from config import Config
from grids.model import GridModel
from implicit_neural_networks import AtlasModel, check_objects, read_checkpoint

Model = AtlasModel | GridModel


def load_model(path: Path, config: Config, device: torch.device) -> Model:
    """The model in a checkpoint, ready to render. Raises UserError naming what is missing or does not fit."""
    checkpoint = read_checkpoint(path, device)
    if config.representation == "grid":
        model = GridModel.from_checkpoint(checkpoint, path)
        check_objects(path, len(model.alphas), config)
        return model.to(device).eval()
    model = AtlasModel(config).to(device)
    model.load_checkpoint(checkpoint, path)
    return model.eval()


def layer_scales_px(model: Model, size: tuple[int, int, int]) -> list[float]:
    """Pixels per unit of uv of each layer, for a clip of (T, H, W)."""
    return [model.px_per_uv(layer, size) for layer in range(len(model.layers))]
