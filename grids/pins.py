"""Mend a mapping by pins: places of several frames that are one place of a layer.

The place of a pin that was set first stays where it is in the atlas, so paint that was made there stays, too. In other
frames the mapping is bent around the pin until its place there leads to the same place of the atlas: most at the pin,
and less and less up to a few times its reach, so that nothing is spoilt far away. A pin that moves far reaches farther,
so that the mapping does not fold. Between its frames the change goes on evenly.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from alignment.pins import Pin
from grids.fields import Lattice
from grids.model import GridModel

ROUNDS = 3  # The nodes of a grid interpolate a change only roughly; each round corrects what the one before left.
# Share of the largest singular value below which pins count as one place: if they contradict each other, the change is
# the mean of theirs.
LEAST_SHARE = 1e-3

LEAST_REACH = 0.4  # Least reach as a share of the way that a pin moves; the mapping folds below 1 / e, see `fade`.

Floats = NDArray[np.floating]


@torch.no_grad()
def fit_to_pins(model: GridModel, pins: Iterable[Pin]) -> None:
    """Add displacements to the mappings with which all places of a pin have one place in the atlas.

    model: on the CPU.
    """
    by_layer: dict[int, list[Pin]] = {}
    for pin in pins:
        by_layer.setdefault(pin.layer, []).append(pin)
    for layer, layer_pins in by_layer.items():
        for _ in range(ROUNDS):
            bend_to_pins(model, layer, layer_pins)


def bend_to_pins(model: GridModel, layer: int, pins: list[Pin]) -> None:
    """Bend a layer's mapping once around its pins, at the nodes of its finest grid."""
    values = model.fields_by_name()[f"mappings.{layer}"][-1].values.data
    frames, height, width = model.shape.size
    lattice = Lattice.of_nodes((values.shape[2], values.shape[3]), (height, width))
    times = np.linspace(0, frames - 1, len(values))
    tracks = [follow_pin(model, pin, times) for pin in pins]
    places, changes = (np.stack(parts, axis=1) for parts in zip(*tracks, strict=True))
    scale = model.texels_per_pixel(layer).numpy()
    reaches_px = np.array([pin.reach_px for pin in pins])
    for node, time in enumerate(times):
        t = round(float(time))
        reaches = np.maximum(reaches_px * scale[t], LEAST_REACH * np.linalg.norm(changes[node], axis=-1))
        strengths = np.linalg.lstsq(fade(places[node], places[node], reaches), changes[node], LEAST_SHARE)[0]
        texels = model.at_frames(t).texels(layer, lattice)[0].permute(1, 2, 0).numpy()
        change = fade(texels.reshape(-1, 2), places[node], reaches) @ strengths
        values[node] += torch.from_numpy(change.T.reshape(values[node].shape)).float()


def follow_pin(model: GridModel, pin: Pin, times: Floats) -> tuple[Floats, Floats]:
    """Return where a pin is mapped to at some times and by how much that is to change, (n, 2) each, in texels.

    Between the pin's frames the change goes on evenly; before the first and after the last it stays as it is there.
    """
    points = torch.from_numpy(pin.places_px).float()[:, :, None]
    mapped = model.at_frames(*pin.frames.tolist()).map_points(pin.layer, torch.arange(len(points)), points)[:, :, 0]
    texels = mapped.double().numpy()
    places = np.stack([np.interp(times, pin.frames, texels[:, axis]) for axis in range(2)], axis=1)
    return places, texels[pin.anchor] - places


def fade(points: Floats, centers: Floats, reaches: Floats) -> Floats:
    """Return how much of a change at each center (K, 2) arrives at each point (n, 2), (n, K), from 1 towards 0.

    It is smooth, and less than a fifth at three times a center's reach (K,) (Matérn covariance of order 3 / 2).
    """
    distances = np.linalg.norm(points[:, None] - centers, axis=-1) / reaches
    return np.asarray((1 + distances) * np.exp(-distances))
