"""The dial of a layer's rigidity in a finished run: stiffer displacements, or softer ones that follow the flow more.

Training at the end of a run moves mappings by fractions of a pixel, so its rigidity term alone would change nothing
that one could see. A stiffer layer has displacements that bend less and lie near those that it had. A softer layer is
fitted to the flow once more, with less weight on bending than at the start."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grids.fields import finest_nodes, sum_at_nodes
from grids.flow_fit import BENDING, FlowEnergy, conjugate_gradients, follow_lattice, join_rows
from grids.model import GridModel
from grids.smoothness import Smoothness
from implicit_neural_networks import visibility
from unwrap_utils import Video

STEPS = 40  # Steps of conjugate gradients.
OUTLIER_PX = 3.0  # Residuals of flow above this have little weight.
SHOWN = 0.5  # Visibility above which a layer counts as seen.
STIFFENED = 1.0  # Weight of squared second differences, against squared changes, for a factor of 2.


def change_stiffness(model: GridModel, video: Video, layer: int, factor: float) -> None:
    """Make a layer's mapping stiffer (factor above 1) or softer (below 1). model and video: on the CPU."""
    if factor > 1:
        stiffen(model, layer, STIFFENED * (factor - 1))
    elif factor < 1:
        soften(model, video, layer, factor)


def stiffen(model: GridModel, layer: int, bending: float) -> None:
    """Replace a layer's displacements by smoother ones. bending: weight of their squared second differences."""
    grids = model.fields_by_name()[f"mappings.{layer}"]
    lattice, frames = finest_nodes(grids, model.shape.size[1:]), torch.arange(model.shape.size[0])
    before = sum_at_nodes(grids, [grid.values.detach() for grid in grids], lattice, frames)
    smooth = Smoothness(lattice.shape, bending)

    def energy(nodes: list[Tensor], with_offset: bool) -> Tensor:
        change = sum_at_nodes(grids, nodes, lattice, frames)
        return 0.5 * (change.square().sum() + smooth.energy(change + before if with_offset else change))

    start = [torch.zeros_like(grid.values) for grid in grids]
    changes = conjugate_gradients(energy, start, [torch.ones_like(values) for values in start], STEPS)
    for grid, change in zip(grids, changes, strict=True):
        grid.values.data.add_(change)


def soften(model: GridModel, video: Video, layer: int, factor: float) -> None:
    """Fit a layer's displacements to the flow once more, with less weight on bending. Without flow nothing changes."""
    rows = follow_lattice(video, find_shown(model, layer))
    if not rows:
        return
    problem = FlowEnergy(model, layer, join_rows(rows), BENDING * factor)
    start = [torch.zeros_like(grid.values) for grid in problem.grids]
    weights = problem.weights(start, OUTLIER_PX)

    def energy(nodes: list[Tensor], with_offset: bool) -> Tensor:
        return problem.evaluate(nodes, weights, with_offset)

    changes = conjugate_gradients(energy, start, problem.inverse_curvature(weights), STEPS)
    for grid, change in zip(problem.grids, changes, strict=True):
        grid.values.data.add_(change)


@torch.no_grad()
def find_shown(model: GridModel, layer: int) -> NDArray[np.bool_]:
    """Return where a layer is seen, (T, H, W)."""
    frames, height, width = size = model.shape.size
    shown = np.zeros((frames, height, width), bool)
    for t in range(frames):
        sample = model.frame_sample(t, size, full_range=True, with_colors=False)
        shown[t] = (visibility(sample.alpha)[layer, :, 0] > SHOWN).view(height, width).cpu().numpy()
    return shown
