"""Pins: places in several frames that somebody says are one place of a layer."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from command_line import UserError

EXAMPLE = '{"pins": [{"layer": 0, "places": [[0, 120.5, 48], [30, 140, 51.5]], "reach_px": 12}]}'
REACH_PX = 12.0  # Usual reach of a pin.
BEYOND_PX = 1.0  # Pixels by which a place may lie outside of its frame: the mapping is only known inside.


@dataclass(frozen=True)
class Pin:
    """Places of one point of a layer."""

    layer: int  # index of the layer, the front object first
    frames: NDArray[np.int64]  # (K,) increasing
    places_px: NDArray[np.floating]  # (K, 2) x, y in these frames, in pixels of working size
    reach_px: float = REACH_PX  # pixels from the pin within which the mapping is bent most
    anchor: int = 0  # index of the place that keeps its place in the atlas: the one that was set first

    def values(self) -> dict[str, Any]:
        """Return the pin as plain numbers, for a checkpoint."""
        return asdict(self) | {"frames": self.frames.tolist(), "places_px": self.places_px.tolist()}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Pin":
        """Return the pin of an earlier `values`."""
        arrays = {"frames": np.array(values["frames"], np.int64), "places_px": np.array(values["places_px"], float)}
        return cls(**(values | arrays))


def read_pins(path: Path, size: tuple[int, int, int], layers: int) -> list[Pin]:
    """Read the pins of a clip of (T, H, W) with a number of layers. Pins with one place say nothing and are left out.

    An empty list is one: with it, a run forgets the pins that it has.

    Raises UserError if the file is missing or damaged, if a layer or frame does not exist, if a place is outside of its
    frame, if a reach is no length within the frame, or if there are pins and none has two places.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        described = values["pins"]
        pins = [parse_pin(path, number, each, size, layers) for number, each in enumerate(described, 1)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --pins takes a JSON such as {EXAMPLE}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: no list of pins; expected {EXAMPLE}") from None
    whole = [pin for pin in pins if len(pin.frames) > 1]
    if pins and not whole:
        raise UserError(f"{path}: no pin has places in two frames; expected {EXAMPLE}")
    return whole


def parse_pin(path: Path, number: int, values: dict[str, Any], size: tuple[int, int, int], layers: int) -> Pin:
    """Check one pin. Raises UserError that names it, and ValueError, KeyError or TypeError for another structure."""
    frames, height, width = size
    layer, places = int(values["layer"]), np.array(values["places"], float)
    if places.ndim != 2 or places.shape[1] != 3 or not np.isfinite(places).all():
        raise ValueError("places are frame, x and y")
    if not 0 <= layer < layers:
        raise UserError(f"{path}: pin {number} is on layer {layer}, expected 0 to {layers - 1}, the background last")
    for t, x, y in places:
        if t != int(t) or not 0 <= t < frames:
            raise UserError(f"{path}: pin {number} names frame {t:g}, the clip has frames 0 to {frames - 1}")
        if not all(-BEYOND_PX <= at <= side - 1 + BEYOND_PX for at, side in ((x, width), (y, height))):
            raise UserError(
                f"{path}: pin {number} lies at {x:g}, {y:g} in frame {t:g}, outside of {width} x {height}; give pixels "
                "of working size"
            )
    if len(set(places[:, 0])) < len(places):
        raise UserError(f"{path}: pin {number} has two places in one frame; keep one of them")
    reach_px = float(values.get("reach_px", REACH_PX))
    if not 1 <= reach_px <= max(height, width):
        raise UserError(f"{path}: pin {number} has a reach of {reach_px:g} pixels, expected 1 to {max(height, width)}")
    order = places[:, 0].argsort()
    anchor, places = int(np.flatnonzero(order == 0)[0]), places[order]
    return Pin(layer, places[:, 0].astype(np.int64), places[:, 1:], reach_px, anchor)
