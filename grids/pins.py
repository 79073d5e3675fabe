"""Mend a mapping by pins: places of several frames that are one place of a layer.

The displacements of the layer follow the flow again, as at the start (`grids.flow_fit`), but pins are certain, whatever
the flow says. A pin moves what is around it, too, and its change fades slowly in time: if it changed one frame alone,
the frames between two places would not follow."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment.pins import Pin
from grids.flow_fit import Connections, FlowEnergy, Row, conjugate_gradients, follow_lattice, join_rows
from grids.model import GridModel
from implicit_neural_networks import visibility
from unwrap_utils import Video

OUTLIERS_PX = (10.0, 5.0, 3.0)  # Residuals of flow above these have little weight, from the first round to the last.
STEPS = 30  # Steps of conjugate gradients in each round.
PIN_WEIGHT, NEAR_WEIGHT = 1000.0, 50.0  # Weights of a pin, and of a point near it; a point of the flow has 1.
NEAR_PX, NEAR_STEP_PX = 12.0, 6.0  # How far a pin moves what is around it, and the distance of the points there.
STEADINESS = 2.0  # Weight of the squared change of displacements from frame to frame.
SHOWN = 0.5  # Visibility above which a layer counts as seen.


class PinEnergy(FlowEnergy):
    """The least-squares problem of a layer with pins, which are the last pairs of the connections."""

    def __init__(self, model: GridModel, layer: int, pairs: Connections, flow_pairs: int):
        super().__init__(model, layer, pairs)
        self.is_certain = (torch.arange(len(pairs.source)) >= flow_pairs)[:, None]

    def weights(self, nodes: list[Tensor], outlier_px: float) -> Tensor:
        """Return the weight (P, N) of each point. Pins are never outliers."""
        return torch.where(self.is_certain, self.pairs.weight, super().weights(nodes, outlier_px))

    def smoothness_of(self, total: Tensor) -> Tensor:
        """Return the energy of displacements (T, 2, ny, nx) that bend, stretch or shift the layer, or are unsteady."""
        return super().smoothness_of(total) + STEADINESS * total.diff(dim=0).square().sum()


def fit_to_pins(model: GridModel, video: Video, pins: Iterable[Pin]) -> None:
    """Add displacements to the mappings with which all places of a pin have one place in the atlas.

    model and video: on the CPU.
    """
    by_layer: dict[int, list[Pin]] = {}
    for pin in pins:
        by_layer.setdefault(pin.layer, []).append(pin)
    for layer, layer_pins in by_layer.items():
        flow = follow_lattice(video, find_shown(model, layer))
        rows = flow + [row for pin in layer_pins for row in pin_rows(pin)]
        problem = PinEnergy(model, layer, join_rows(rows), len(flow))
        nodes = [torch.zeros_like(grid.values) for grid in problem.grids]
        for outlier_px in OUTLIERS_PX:
            weights = problem.weights(nodes, outlier_px)

            def energy(
                values: list[Tensor], with_offset: bool, problem: FlowEnergy = problem, weights: Tensor = weights
            ) -> Tensor:
                return problem.evaluate(values, weights, with_offset)

            nodes = conjugate_gradients(energy, nodes, problem.inverse_curvature(weights), STEPS)
        for grid, values in zip(problem.grids, nodes, strict=True):
            grid.values.data.add_(values)


def pin_rows(pin: Pin) -> list[Row]:
    """Return the connections of a pin: each place with the next one, and with the first one."""
    near = np.arange(-NEAR_PX, NEAR_PX + 1, NEAR_STEP_PX)
    offsets = np.stack(np.meshgrid(near, near), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(offsets, axis=1)
    offsets, distance = offsets[distance <= NEAR_PX], distance[distance <= NEAR_PX]
    weights = np.where(distance == 0, PIN_WEIGHT, NEAR_WEIGHT * np.exp(-((distance / NEAR_PX) ** 2)))
    count = len(pin.frames)
    pairs = dict.fromkeys([*pairwise(range(count)), *((0, number) for number in range(1, count))])
    return [
        (
            int(pin.frames[first]),
            int(pin.frames[second]),
            pin.places_px[first] + offsets,
            pin.places_px[second] + offsets,
            weights,
        )
        for first, second in pairs
    ]


@torch.no_grad()
def find_shown(model: GridModel, layer: int) -> NDArray[np.bool_]:
    """Return where a layer is seen, (T, H, W)."""
    frames, height, width = size = model.shape.size
    shown = np.zeros((frames, height, width), bool)
    for t in range(frames):
        sample = model.frame_sample(t, size, full_range=True, with_colors=False)
        shown[t] = (visibility(sample.alpha)[layer, :, 0] > SHOWN).view(height, width).cpu().numpy()
    return shown
