"""More frames for a finished run: a new run that begins with the windows and atlases of the old one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from command_line import UserError
from config import Config, config_text, load_config
from grids.atlases import Size
from grids.model import GridModel
from grids.window_start import Extension
from grids.windowed_learner import WindowedLearner, measure_window_coverage
from grids.windows import OVERLAP, LayerAtlas, Placement, Span, WindowedModel, WindowLayer
from media import fresh_folder, to_8_bit, write_text
from media.checkpoints import read_checkpoint
from media.clip import Clip, open_clip
from rendering.frames import render_frame
from rendering.trained_run import TrainedRun
from training.log import Log
from training.loop import Trainer
from training.runs import print_start

MOST_ITERATIONS = 1_000_000  # of the new windows; their time ends earlier


def check_extendable(run: TrainedRun) -> None:
    """Raise UserError for a run of networks, and for one whose windows are not all trained."""
    if not isinstance(run.model, GridModel | WindowedModel):
        raise UserError(
            f"{run.checkpoint}: new frames can be added to runs of representation grid (config/fast.json), not to "
            "networks; train again with all frames"
        )
    state = read_checkpoint(run.checkpoint).get("windowed_learner")
    if state is not None and state["waiting"]:
        folder = run.checkpoint.parent
        raise UserError(f"{folder}: is not finished; continue it first, with python train.py --resume {folder}")


def make_config_of_extension(run: TrainedRun, clip_folder: Path, frames: int, time_budget_s: float) -> Config:
    """Return the config of a run, for its clip with more frames."""
    return replace(
        load_config(run.checkpoint.parent / "config.json"),
        data_folder=str(clip_folder),
        maximum_number_of_frames=frames,
        time_budget_s=time_budget_s,
        iters_num=MOST_ITERATIONS,
        load_checkpoint=False,
        strokes_folder="",
    )


def open_extended_clip(run: TrainedRun, folder: Path, frames: int) -> Clip:
    """Open the clip of a run with more frames. folder: of all frames. frames: their number."""
    return open_clip(folder, make_config_of_extension(run, folder, frames, 1.0))


def start_extension(
    run: TrainedRun, clip: Clip, mask_sources: list[str], time_budget_s: float, device: str | None
) -> Trainer:
    """Begin a new run that extends another one, in a folder of its own beside it.

    clip: of the run, with more frames. mask_sources: of each object's new masks, see `write_new_masks`. time_budget_s:
    for reading, the start and training of the new frames.
    """
    old_folder, first = run.checkpoint.parent, len(run.clip) - OVERLAP
    extension = open_extension(run)
    config = make_config_of_extension(run, clip.folder, len(clip), time_budget_s)
    trainer = Trainer(config, old_folder, device, in_windows=True, first=max(0, first))
    learner = trainer.learner
    assert isinstance(learner, WindowedLearner)  # as in_windows asks for
    model = run.model.windows[len(run.model.spans) - 1] if isinstance(run.model, WindowedModel) else run.model
    assert isinstance(model, GridModel)  # as check_extendable demands
    as_before = ["brought" if bool(is_kept.all()) else "found" for is_kept in model.is_kept]
    learner.video.mask_sources = tuple(
        before if source == "unknown" else source for source, before in zip(mask_sources, as_before, strict=True)
    )
    for t in range(max(0, first), len(run.clip)):  # Here the masks are known better than those that the run was given.
        alpha = render_frame(run.model, run.clip, t, full_range=True, with_colors=False).alpha
        learner.video.masks[:, t] = torch.from_numpy(to_8_bit(alpha))
    trainer.folder = folder = fresh_folder(old_folder.with_name(f"{old_folder.name.rstrip('_')}_extended"))
    write_text(folder / "config.json", config_text(config))
    trainer.log = Log(folder / "log.jsonl")
    print_start(trainer)
    with trainer.stop_signal.install():
        try:
            learner.extend(extension, folder)
        except KeyboardInterrupt:
            raise trainer.make_stop_error() from None
    trainer.save()
    return trainer


def open_extension(run: TrainedRun) -> Extension:
    """Return the windows and the atlases of a run. A clip that was trained as a whole is one window."""
    model, path = run.model, run.checkpoint
    if isinstance(model, WindowedModel):
        paths = model.windows.paths
        return Extension(
            model.spans, model.window_layers, model.atlases, lambda: (read_checkpoint(each) for each in paths)
        )
    checkpoint = read_checkpoint(path)
    model = GridModel.from_checkpoint(checkpoint, path)
    nodes = model.last_alpha_grid(0).values.shape
    opacity = checkpoint.get("grid_probability")
    if opacity is None:
        opacity = torch.zeros(len(model.alphas), model.shape.size[0], *nodes[2:])
    coverage = measure_window_coverage(model, opacity.float() / 255)
    layers = [WindowLayer(size, place_layer(model, layer)) for layer, size in enumerate(model.shape.atlas_sizes)]
    atlases = [
        LayerAtlas(
            enlarge(atlas.data, layer.size),
            layer.placement,
            enlarge(seen[None, None], layer.size)[0, 0],
            model.uv_units(index),
        )
        for index, (atlas, layer, seen) in enumerate(zip(model.atlases, layers, coverage, strict=True))
    ]

    def read_window() -> Iterator[dict[str, Any]]:
        window = {name: value for name, value in checkpoint.items() if name.startswith("grid_")}
        yield window | {"grid_optimizer": {}}

    return Extension([Span(0, model.shape.size[0])], [layers], atlases, read_window)


def write_last_frame(trainer: Trainer) -> None:
    """Write preview.png of a finished extension, from its last frame."""
    assert isinstance(trainer.model, WindowedModel)
    trainer.write_start_preview(trainer.model, trainer.model.atlas_images(), len(trainer.clip) - 1)


def place_layer(model: GridModel, layer: int) -> Placement:
    """Return the placement of a layer's atlas: texels are the units of its plane, but not of an unrolled cylinder."""
    surface = model.surface(layer)
    if surface is None:
        return Placement()
    unrolled = surface.cpu().double().numpy()
    return Placement(float(np.sqrt(np.linalg.det(unrolled[:2, :2]))), float(unrolled[0, 2]), float(unrolled[1, 2]))


def enlarge(image: torch.Tensor, size: Size) -> torch.Tensor:
    """Return an image (1, C, h, w) at another size (height, width)."""
    if tuple(image.shape[2:]) == tuple(size):
        return image.detach().clone()
    return torch.nn.functional.interpolate(image.detach(), size, mode="bilinear", align_corners=False)
