"""The scenes by name."""

import math
from collections.abc import Callable

from skimage import data

from scenes.scene import Layer, Pose, Scene, ellipse


def demo(width: int = 208, height: int = 117, frames: int = 16) -> Scene:
    """A cat's face that turns and slightly bends while it crosses a garage, past which the camera pans."""
    garage, cat = data.stereo_motorcycle()[0], data.chelsea()
    unit = width / 320

    def camera(t: float) -> Pose:
        share = t / max(frames - 1, 1)
        return Pose(width * (0.66 - 0.32 * share), height * (0.5 + 0.03 * math.sin(4 * share)), scale=0.72 * unit)

    def turning(t: float) -> Pose:
        share = t / max(frames - 1, 1)
        return Pose(
            x=width * (0.34 + 0.34 * share),
            y=height * (0.52 - 0.06 * math.sin(math.pi * share)),
            angle=math.radians(-18 + 36 * share),
            scale=0.40 * unit,
            bend=7 * math.sin(2 * math.pi * share),
        )

    face = Layer(cat, turning, ellipse(center=(205, 150), radii=(150, 135)), wavelength_px=420)
    return Scene("demo", width, height, frames, (face, Layer(garage, camera)))


SCENES: dict[str, Callable[..., Scene]] = {"demo": demo}
