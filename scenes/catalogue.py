"""The scenes by name. Every one is a function of (width, height, frames): any size, any length, always the same."""

import math
from collections.abc import Callable

import numpy as np
from skimage import data

from scenes.scene import Floats, Layer, Pose, Scene, ellipse

SHUTTER = 0.8  # of the blurred scene
FAST_PX_PER_FRAME = 25  # at 768 pixels of width


def cat(pose: Callable[[float], Pose]) -> Layer:
    """A cat's face cut out as an ellipse."""
    return Layer(data.chelsea(), pose, ellipse(center=(205, 150), radii=(150, 135)), wavelength_px=420)


def cup(pose: Callable[[float], Pose]) -> Layer:
    """A coffee cup on its saucer."""
    return Layer(data.coffee(), pose, ellipse(center=(305, 215), radii=(200, 150)))


def garage(pose: Callable[[float], Pose]) -> Layer:
    """A motorcycle in a garage: a background full of detail."""
    return Layer(data.stereo_motorcycle()[0], pose)


def progress(frames: int) -> Callable[[float], float]:
    """Frame number to the share of the clip that has passed."""
    return lambda t: t / max(frames - 1, 1)


def demo(width: int = 208, height: int = 117, frames: int = 16) -> Scene:
    """A cat's face that turns and slightly bends while it crosses a garage, past which the camera pans."""
    share, unit = progress(frames), width / 320

    def camera(t: float) -> Pose:
        sway = 0.03 * math.sin(4 * share(t))
        return Pose(width * (0.66 - 0.32 * share(t)), height * (0.5 + sway), scale=0.72 * unit)

    def turning(t: float) -> Pose:
        return Pose(
            x=width * (0.34 + 0.34 * share(t)),
            y=height * (0.52 - 0.06 * math.sin(math.pi * share(t))),
            angle=math.radians(-18 + 36 * share(t)),
            scale=0.40 * unit,
            bend=7 * math.sin(2 * math.pi * share(t)),
        )

    return Scene("demo", width, height, frames, (cat(turning), garage(camera)))


def pan(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Easy: the camera pans, a rigid object moves and turns a little."""
    share, unit = progress(frames), width / 320

    def camera(t: float) -> Pose:
        return Pose(width * (0.68 - 0.36 * share(t)), height * (0.5 + 0.04 * math.sin(3 * share(t))), scale=0.72 * unit)

    def drifting(t: float) -> Pose:
        x, y = width * (0.3 + 0.35 * share(t)), height * (0.5 + 0.1 * math.sin(math.pi * share(t)))
        return Pose(x, y, math.radians(15 * share(t)), 0.42 * unit)

    return Scene("pan", width, height, frames, (cat(drifting), garage(camera)))


def bend(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Easy: the camera pans, zooms and rolls, the object bends."""
    share, unit = progress(frames), width / 320

    def camera(t: float) -> Pose:
        x, y = width * (0.6 - 0.2 * share(t)), height * 0.5
        return Pose(x, y, math.radians(6 * math.sin(2 * share(t))), unit * (0.74 + 0.16 * share(t)))

    def bending(t: float) -> Pose:
        x = width * (0.38 + 0.22 * share(t))
        wave = 14 * math.sin(2 * math.pi * share(t))
        return Pose(x, height * 0.52, math.radians(10 * math.sin(4 * share(t))), 0.42 * unit, wave)

    return Scene("bend", width, height, frames, (cat(bending), garage(camera)))


def turn(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """The object turns by 80 degrees and grows to twice its size."""
    share, unit = progress(frames), width / 320

    def camera(t: float) -> Pose:
        return Pose(width * (0.56 - 0.12 * share(t)), height * 0.5, scale=0.74 * unit)

    def growing(t: float) -> Pose:
        x, y = width * (0.35 + 0.2 * share(t)), height * 0.5
        return Pose(x, y, math.radians(-40 + 80 * share(t)), unit * 0.25 * 2 ** share(t))

    return Scene("turn", width, height, frames, (cat(growing), garage(camera)))


def fast(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """The object swings at up to 25 pixels per frame (of 768), with motion blur."""
    unit, reach = width / 320, 0.22 * width
    turns = FAST_PX_PER_FRAME * width / 768 / reach  # radians per frame

    def camera(t: float) -> Pose:
        return Pose(width * (0.5 + 0.03 * math.sin(0.1 * t)), height * 0.5, scale=0.74 * unit)

    def swinging(t: float) -> Pose:
        return Pose(
            width * 0.5 + reach * math.sin(turns * t), height * (0.5 + 0.05 * math.cos(0.3 * t)), 0, 0.36 * unit
        )

    return Scene("fast", width, height, frames, (cat(swinging), garage(camera)), shutter=SHUTTER)


def light(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """As `pan`, with a shadow that walks along under the object and light that flickers on the background."""
    base, share = pan(width, height, frames), progress(frames)
    flicker = 1 + 0.1 * np.random.default_rng(7).uniform(-1, 1, frames + 1)

    def factor(points: Floats, t: float) -> Floats:
        center = np.array([width * (0.34 + 0.35 * share(t)), height * 0.86])
        away = np.linalg.norm((points - center) / [0.24 * width, 0.14 * height], axis=-1)
        shadow = 1 - 0.5 * np.clip(1.5 - away, 0, 1)
        return shadow * np.interp(t, np.arange(frames + 1), flicker)

    return Scene("light", width, height, frames, base.layers, light=factor)


def cross(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Two objects cross, one passing in front of the other."""
    share, unit = progress(frames), width / 320

    def camera(t: float) -> Pose:
        return Pose(width * (0.55 - 0.1 * share(t)), height * 0.5, scale=0.74 * unit)

    def rightward(t: float) -> Pose:
        return Pose(width * (0.22 + 0.5 * share(t)), height * 0.55, math.radians(12 * share(t)), 0.34 * unit)

    def leftward(t: float) -> Pose:
        return Pose(width * (0.78 - 0.52 * share(t)), height * 0.42, math.radians(-20 * share(t)), 0.27 * unit)

    return Scene("cross", width, height, frames, (cat(rightward), cup(leftward), garage(camera)))


SCENES: dict[str, Callable[..., Scene]] = {
    scene.__name__: scene for scene in (demo, pan, bend, turn, fast, light, cross)
}
EASY = ("pan", "bend")
