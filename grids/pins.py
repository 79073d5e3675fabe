"""Mend a mapping by pins: places of several frames that are one place of a layer.

Displacements are added that bring the places of each pin together and change as little else as possible: what the
mapping connects over the frames, along the flow, stays connected, and the change bends little in space and is steady in
time. So a pin never spoils what is right far away from it. It is one linear least-squares problem for each layer,
solved as the start is (`grids.flow_fit`)."""

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

STEPS = 60  # Steps of conjugate gradients.
PIN_WEIGHT = 1000.0  # Weight of a pin; a point that follows the flow has 1.
BENDING, STEADINESS = 10.0, 100.0  # Weights of squared second differences in space, and first differences in time.
SHOWN = 0.5  # Visibility above which a layer counts as seen.


class PinEnergy(FlowEnergy):
    """The least-squares problem of a layer with pins, which are the last pairs of the connections."""

    bending = BENDING

    def __init__(self, model: GridModel, layer: int, pairs: Connections, flow_pairs: int):
        super().__init__(model, layer, pairs)
        # Residuals are measured in pixels of the frame that shows the layer larger.
        scale = model.texels_per_pixel(layer)
        finer = torch.minimum(scale[pairs.source], scale[pairs.target])[:, None, None]
        self.offset, self.pair_scale = self.offset * self.pair_scale / finer, finer
        self.offset[:flow_pairs] = 0  # The mapping may be better than the flow: only its change is held together.

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
        pairs = join_rows(flow + [row for pin in layer_pins for row in pin_rows(pin)])
        problem = PinEnergy(model, layer, pairs, len(flow))

        def energy(nodes: list[Tensor], with_offset: bool, problem: PinEnergy = problem) -> Tensor:
            return problem.evaluate(nodes, problem.pairs.weight, with_offset)

        start = [torch.zeros_like(grid.values) for grid in problem.grids]
        nodes = conjugate_gradients(energy, start, problem.inverse_curvature(pairs.weight), STEPS)
        for grid, values in zip(problem.grids, nodes, strict=True):
            grid.values.data.add_(values)


def pin_rows(pin: Pin) -> list[Row]:
    """Return the connections of a pin: each place with the next one, and with the first one."""
    count = len(pin.frames)
    pairs = dict.fromkeys([*pairwise(range(count)), *((0, number) for number in range(1, count))])
    frames, places = pin.frames.tolist(), pin.places_px
    return [(frames[a], frames[b], places[a : a + 1], places[b : b + 1], PIN_WEIGHT) for a, b in pairs]


@torch.no_grad()
def find_shown(model: GridModel, layer: int) -> NDArray[np.bool_]:
    """Return where a layer is seen, (T, H, W)."""
    frames, height, width = size = model.shape.size
    shown = np.zeros((frames, height, width), bool)
    for t in range(frames):
        sample = model.frame_sample(t, size, full_range=True, with_colors=False)
        shown[t] = (visibility(sample.alpha)[layer, :, 0] > SHOWN).view(height, width).cpu().numpy()
    return shown
