"""The trained model of a run, whichever its representation."""

from pathlib import Path

import torch

from config import Config
from grids.model import GridModel
from implicit_neural_networks import AtlasModel, Model, check_object_count, read_checkpoint


def load_model(path: Path, config: Config, device: torch.device) -> Model:
    """Load the model of a checkpoint, ready to render. Raises UserError naming what is missing or does not fit."""
    checkpoint = read_checkpoint(path, device)
    if config.representation == "grid":
        grid_model = GridModel.from_checkpoint(checkpoint, path)
        check_object_count(path, len(grid_model.layers.foregrounds), config)
        return grid_model.to(device).eval()
    model = AtlasModel(config).to(device)
    model.load_checkpoint(checkpoint, path)
    return model.eval()
