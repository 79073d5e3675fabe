"""The scenes by name. Each is a function of width, height and number of frames, and always returns the same scene."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from scenes.scene import Floats, Layer, Panorama, Pose, Scene, View, ellipse

REFERENCE_WIDTH_PX = 320  # width of a frame for which the scales of the photographs are chosen
SHUTTER = 0.8  # exposure time of the scene `fast`, in frames
FAST_PX_PER_FRAME = 25  # largest speed of the object of `fast`, for frames of 768 pixels width

CAT_CENTER, CAT_RADII = (205.0, 150.0), (150.0, 135.0)  # of the ellipse that is cut out, in pixels of the photograph
# A hat for the cat, almost all of it beyond the outline: an ellipse, in pixels of the photograph.
HAT_CENTER, HAT_RADII = (205.0, -12.0), (80.0, 45.0)
# Legs of the walker, cut out of a photograph, in its pixels; reach: from their upper end to their middle.
LEG_LEFT_PX, LEG_WIDTH_PX, LEG_PX, LEG_REACH_PX = 90, 64, 230, 100
LEG_SWING, STRIDE_FRAMES = math.radians(32), 26  # Largest angle of a leg; frames from step to step of the same leg.
SHADOW_STRENGTH = 0.5  # Share of the light that the object of `shadow` takes from the background.


def cat(pose: Callable[[float], Pose]) -> Layer:
    """Return a layer with a cat's face, cut out as an ellipse."""
    return Layer(data.chelsea(), pose, ellipse(CAT_CENTER, CAT_RADII), wavelength_px=420)


def cup(pose: Callable[[float], Pose]) -> Layer:
    """Return a layer with a coffee cup on its saucer, cut out as an ellipse."""
    return Layer(data.coffee(), pose, ellipse(center=(305, 215), radii=(200, 150)))


def garage(pose: Callable[[float], Pose]) -> Layer:
    """Return a background layer with much detail: a motorcycle in a garage."""
    return Layer(data.stereo_motorcycle()[0], pose)


def clip_progress(frames: int) -> Callable[[float], float]:
    """Return a function of the frame number: 0 at the first of `frames` frames, 1 at the last."""
    return lambda t: t / max(frames - 1, 1)


def demo(width: int = 208, height: int = 117, frames: int = 16) -> Scene:
    """Return a scene with a cat's face that crosses a garage, turns and bends slightly, while the camera pans."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        sway = 0.03 * math.sin(4 * progress(t))
        return Pose(width * (0.66 - 0.32 * progress(t)), height * (0.5 + sway), scale=0.72 * unit)

    def cat_pose(t: float) -> Pose:
        return Pose(
            x=width * (0.34 + 0.34 * progress(t)),
            y=height * (0.52 - 0.06 * math.sin(math.pi * progress(t))),
            angle=math.radians(-18 + 36 * progress(t)),
            scale=0.40 * unit,
            bend=7 * math.sin(2 * math.pi * progress(t)),
        )

    return Scene("demo", width, height, frames, (cat(cat_pose), garage(camera_pose)))


def pan(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return an easy scene: the camera pans, and a rigid object moves and turns a little."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        x, y = width * (0.68 - 0.36 * progress(t)), height * (0.5 + 0.04 * math.sin(3 * progress(t)))
        return Pose(x, y, scale=0.72 * unit)

    def cat_pose(t: float) -> Pose:
        x, y = width * (0.3 + 0.35 * progress(t)), height * (0.5 + 0.1 * math.sin(math.pi * progress(t)))
        return Pose(x, y, math.radians(15 * progress(t)), 0.42 * unit)

    return Scene("pan", width, height, frames, (cat(cat_pose), garage(camera_pose)))


def bend(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return an easy scene: the camera pans, zooms and rolls, and the object bends."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        x, y = width * (0.6 - 0.2 * progress(t)), height * 0.5
        return Pose(x, y, math.radians(6 * math.sin(2 * progress(t))), unit * (0.74 + 0.16 * progress(t)))

    def cat_pose(t: float) -> Pose:
        x = width * (0.38 + 0.22 * progress(t))
        wave = 14 * math.sin(2 * math.pi * progress(t))
        return Pose(x, height * 0.52, math.radians(10 * math.sin(4 * progress(t))), 0.42 * unit, wave)

    return Scene("bend", width, height, frames, (cat(cat_pose), garage(camera_pose)))


def turn(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return a scene with an object that turns by 80 degrees and grows to twice its size."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        return Pose(width * (0.56 - 0.12 * progress(t)), height * 0.5, scale=0.74 * unit)

    def cat_pose(t: float) -> Pose:
        x, y = width * (0.35 + 0.2 * progress(t)), height * 0.5
        return Pose(x, y, math.radians(-40 + 80 * progress(t)), unit * 0.25 * 2 ** progress(t))

    return Scene("turn", width, height, frames, (cat(cat_pose), garage(camera_pose)))


def fast(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return a scene with motion blur, whose object swings at up to 25 of 768 pixels per frame."""
    unit, amplitude = width / REFERENCE_WIDTH_PX, 0.22 * width
    frequency = FAST_PX_PER_FRAME * width / 768 / amplitude  # radians per frame

    def camera_pose(t: float) -> Pose:
        return Pose(width * (0.5 + 0.03 * math.sin(0.1 * t)), height * 0.5, scale=0.74 * unit)

    def cat_pose(t: float) -> Pose:
        x, y = width * 0.5 + amplitude * math.sin(frequency * t), height * (0.5 + 0.05 * math.cos(0.3 * t))
        return Pose(x, y, 0, 0.36 * unit)

    return Scene("fast", width, height, frames, (cat(cat_pose), garage(camera_pose)), shutter=SHUTTER)


def light(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return the scene `pan` with a shadow that moves along below the object and flickering light on the background."""
    base, progress = pan(width, height, frames), clip_progress(frames)
    flicker = 1 + 0.1 * np.random.default_rng(7).uniform(-1, 1, frames + 1)

    def light_factor(points: Floats, t: float) -> Floats:
        center = np.array([width * (0.34 + 0.35 * progress(t)), height * 0.86])
        radius = np.linalg.norm((points - center) / [0.24 * width, 0.14 * height], axis=-1)
        shadow = 1 - 0.5 * np.clip(1.5 - radius, 0, 1)
        return shadow * np.interp(t, np.arange(frames + 1), flicker)

    return Scene("light", width, height, frames, base.layers, light=light_factor)


def shadow(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return the scene `pan` with an object that casts a soft shadow on the background, below and beside itself."""
    base = pan(width, height, frames)
    caster, offset = base.layers[0], np.array([0.05 * width, 0.2 * height])

    def light_factor(points: Floats, t: float) -> Floats:
        offsets = (caster.to_photograph(points - offset, t) - CAT_CENTER) / CAT_RADII
        return 1 - SHADOW_STRENGTH * np.clip((1.1 - np.linalg.norm(offsets, axis=-1)) / 0.25, 0, 1)

    return Scene("shadow", width, height, frames, base.layers, light=light_factor)


def cross(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return a scene with two objects, one of which passes in front of the other."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        return Pose(width * (0.55 - 0.1 * progress(t)), height * 0.5, scale=0.74 * unit)

    def cat_pose(t: float) -> Pose:
        return Pose(width * (0.22 + 0.5 * progress(t)), height * 0.55, math.radians(12 * progress(t)), 0.34 * unit)

    def cup_pose(t: float) -> Pose:
        return Pose(width * (0.78 - 0.52 * progress(t)), height * 0.42, math.radians(-20 * progress(t)), 0.27 * unit)

    return Scene("cross", width, height, frames, (cat(cat_pose), cup(cup_pose), garage(camera_pose)))


def wide(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return a scene whose camera turns by 120 degrees, so that 180 degrees are seen, and zooms in a little."""
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX
    photograph = data.stereo_motorcycle()[0]

    def view(t: float) -> View:
        tilt = math.radians(3 * math.sin(5 * progress(t)))
        focal_px = (0.8 + 0.2 * progress(t)) * width  # a field of view of 64 to 53 degrees
        return View(math.radians(-60 + 120 * progress(t)), tilt, focal_px)

    def cat_pose(t: float) -> Pose:
        x, y = width * (0.4 + 0.2 * progress(t)), height * (0.55 + 0.08 * math.sin(math.pi * progress(t)))
        return Pose(x, y, math.radians(10 * math.sin(3 * progress(t))), 0.36 * unit)

    background = Panorama(photograph, view, 0.75 * photograph.shape[1], (width, height))
    return Scene("wide", width, height, frames, (cat(cat_pose), background))


def walk(width: int = 768, height: int = 432, frames: int = 50) -> Scene:
    """Return a scene with an object that walks: two legs swing below its body and cross, while the camera follows.

    Body and legs are layers of their own here; in the masks of a clip that is trained with one object they are one.
    """
    progress, unit = clip_progress(frames), width / REFERENCE_WIDTH_PX
    scale, leg = 0.4 * unit, data.astronaut()[-LEG_PX:, LEG_LEFT_PX : LEG_LEFT_PX + LEG_WIDTH_PX]

    def camera_pose(t: float) -> Pose:
        return Pose(width * (0.66 - 0.32 * progress(t)), height * 0.5, scale=0.74 * unit)

    def body_pose(t: float) -> Pose:
        bob = 0.012 * math.cos(4 * math.pi * t / STRIDE_FRAMES)
        return Pose(width * (0.42 + 0.16 * progress(t)), height * (0.36 + bob), scale=scale * 0.8)

    def swing(phase: float) -> Callable[[float], Pose]:
        def leg_pose(t: float) -> Pose:
            body, angle = body_pose(t), LEG_SWING * math.sin(2 * math.pi * t / STRIDE_FRAMES + phase)
            # The leg turns about its upper end, which is hidden by the body.
            reach = LEG_REACH_PX * scale
            hip_y = body.y + 0.18 * height
            return Pose(body.x - reach * math.sin(angle), hip_y + reach * math.cos(angle), angle, scale)

        return leg_pose

    outline = ellipse(((LEG_WIDTH_PX - 1) / 2, (LEG_PX - 1) / 2), (0.42 * LEG_WIDTH_PX, 0.48 * LEG_PX))
    legs = [
        Layer(np.ascontiguousarray(part), swing(phase), outline)
        for part, phase in ((leg, 0.0), (leg[:, ::-1], math.pi))
    ]
    return Scene("walk", width, height, frames, (cat(body_pose), *legs, garage(camera_pose)))


def roam(width: int = 384, height: int = 216, frames: int = 1000) -> Scene:
    """Return a long scene: the camera roams over a garage and comes back, and an object wanders, turns and bends.

    What happens in a frame does not depend on the number of frames.
    """
    unit = width / REFERENCE_WIDTH_PX

    def camera_pose(t: float) -> Pose:
        x, y = width * (0.5 + 0.35 * math.sin(t / 37)), height * (0.5 + 0.15 * math.sin(t / 23 + 1))
        return Pose(x, y, math.radians(4 * math.sin(t / 51)), unit * (0.8 + 0.08 * math.sin(t / 67)))

    def cat_pose(t: float) -> Pose:
        x, y = width * (0.5 + 0.22 * math.sin(t / 29 + 2)), height * (0.52 + 0.1 * math.sin(t / 17))
        wave = 9 * math.sin(t / 11)
        return Pose(x, y, math.radians(14 * math.sin(t / 31)), unit * (0.38 + 0.05 * math.sin(t / 43)), wave)

    return Scene("roam", width, height, frames, (cat(cat_pose), garage(camera_pose)))


def fur(photograph: NDArray[np.uint8], opacity: Floats, width: int, height: int, frames: int) -> Scene:
    """Return a scene with an animal whose soft opacity is known, moved over a garage while the camera pans.

    photograph (h, w, 3): the animal's colours. opacity (h, w) in [0, 1].
    """
    progress, scale = clip_progress(frames), 0.7 * height / photograph.shape[0]

    def opacity_at(points: Floats) -> Floats:
        x, y = points.astype(np.float32).transpose(2, 0, 1)
        values: NDArray = cv2.remap(opacity.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return values

    def animal_pose(t: float) -> Pose:
        return Pose(width * (0.35 + 0.3 * progress(t)), height * 0.55, math.radians(8 * progress(t)), scale)

    def camera_pose(t: float) -> Pose:
        x, y = width * (0.6 - 0.2 * progress(t)), height * 0.5
        return Pose(x, y, scale=0.74 * width / REFERENCE_WIDTH_PX)

    return Scene("fur", width, height, frames, (Layer(photograph, animal_pose, opacity_at), garage(camera_pose)))


SCENES: dict[str, Callable[..., Scene]] = {
    "demo": demo,
    "pan": pan,
    "bend": bend,
    "turn": turn,
    "fast": fast,
    "light": light,
    "shadow": shadow,
    "cross": cross,
    "wide": wide,
    "walk": walk,
    "roam": roam,
}
