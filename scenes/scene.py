"""A scene: photographs moved in known ways. Frames, opacity, flow and every pixel's place are exact by construction.

Pixel positions are (x, y) at pixel centers, as everywhere: the upper left pixel is (0, 0)."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SUPERSAMPLING = 3  # samples per pixel along each axis
SHUTTER_SAMPLES = 9  # moments averaged for motion blur, which smooths along the motion: one sample per pixel then does
EDGE_PX = 1.0  # width of the soft edge of a shape, photograph pixels


@dataclass(frozen=True)
class Pose:
    """How a photograph lies in a frame: bent, turned, scaled, then moved. Angles in radians, lengths in pixels."""

    x: float  # where the photograph's pivot lies in the frame
    y: float
    angle: float = 0.0
    scale: float = 1.0
    bend: float = 0.0  # photograph pixels by which its columns shift up and down, as a wave
    bend_phase: float = 0.0


@dataclass(frozen=True)
class Layer:
    """A photograph, where it lies at each time, and how opaque it is at each of its points."""

    photograph: NDArray[np.uint8]  # (h, w, 3)
    pose: Callable[[float], Pose]
    opacity: Callable[[Floats], Floats] | None = None  # (..., 2) photograph pixels -> (...); None: everywhere
    wavelength_px: float = 200.0  # of the bend

    @property
    def pivot(self) -> Floats:
        height, width = self.photograph.shape[:2]
        return np.array([(width - 1) / 2, (height - 1) / 2])

    def to_photograph(self, points: Floats, t: float) -> Floats:
        """Frame pixels (..., 2) at time t -> photograph pixels."""
        pose = self.pose(t)
        local = (
            (points - [pose.x, pose.y]) @ rotation_matrix(pose.angle) / pose.scale
        )  # row vectors: this is the inverse
        return shift_columns(local, pose, self.wavelength_px, -1) + self.pivot

    def to_frame(self, places: Floats, t: float) -> Floats:
        """Photograph pixels (..., 2) -> frame pixels at time t; the inverse of to_photograph."""
        pose = self.pose(t)
        local = shift_columns(places - self.pivot, pose, self.wavelength_px, 1)
        return local * pose.scale @ rotation_matrix(pose.angle).T + [pose.x, pose.y]

    def opacity_at(self, places: Floats) -> Floats:
        """(...) in [0, 1] of photograph pixels (..., 2)."""
        return np.ones(places.shape[:-1]) if self.opacity is None else self.opacity(places)

    def color_at(self, places: Floats) -> NDArray[np.float32]:
        """(H, W, 3) in 0..255 of photograph pixels (H, W, 2), cubic; the border is mirrored."""
        x, y = np.float32(places).transpose(2, 0, 1)
        color = cv2.remap(self.photograph, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return color.astype(np.float32)


def rotation_matrix(angle: float) -> Floats:
    """2 x 2 matrix that turns column vectors by an angle."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def shift_columns(local: Floats, pose: Pose, wavelength_px: float, sign: int) -> Floats:
    """Shift columns by the pose's wave (sign 1) or back (-1): a shear, so each undoes the other exactly."""
    wave = pose.bend * np.sin(2 * np.pi * local[..., 0] / wavelength_px + pose.bend_phase)
    return np.stack((local[..., 0], local[..., 1] + sign * wave), axis=-1)


def ellipse(center: tuple[float, float], radii: tuple[float, float]) -> Callable[[Floats], Floats]:
    """Opacity of an ellipse in photograph pixels, with a soft edge."""

    def opacity(places: Floats) -> Floats:
        away = (places - center) / radii
        length = np.linalg.norm(away, axis=-1)
        slope = np.linalg.norm(away / radii, axis=-1) / np.maximum(length, 1e-9)  # turns `length` to pixels
        return np.clip(0.5 - (length - 1) / np.maximum(slope, 1e-9) / EDGE_PX, 0, 1)

    return opacity


@dataclass(frozen=True)
class SceneFrame:
    """One frame and its truth."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    alpha: NDArray[np.float32]  # (F, H, W) exact soft opacity of each object, as if alone
    front_layer: NDArray[np.uint8]  # (H, W) which layer a pixel's center shows, 0 is the front one
    light: NDArray[np.float32]  # (H, W) what the background's colours were multiplied by


@dataclass(frozen=True)
class Scene:
    """Layers front to back, the background last, over a number of frames."""

    name: str
    width: int
    height: int
    frames: int
    layers: tuple[Layer, ...]
    shutter: float = 0.0  # share of the time between frames during which light is gathered: motion blur
    light: Callable[[Floats, float], Floats] | None = None  # frame pixels (H, W, 2), time -> factor of the background

    @property
    def objects(self) -> int:
        """Number of foreground layers."""
        return len(self.layers) - 1

    def grid(self, finer: int = 1) -> Floats:
        """(H * finer, W * finer, 2) positions: pixel centers, or samples spread evenly within the pixels."""
        x = (np.arange(self.width * finer) + 0.5) / finer - 0.5
        y = (np.arange(self.height * finer) + 0.5) / finer - 0.5
        return np.stack(np.meshgrid(x, y), axis=-1)

    def light_at(self, points: Floats, t: float) -> NDArray[np.float32]:
        """(H, W) factor of the background's colours at frame pixels (H, W, 2)."""
        return np.ones(points.shape[:2], np.float32) if self.light is None else np.float32(self.light(points, t))

    def frame(self, t: int) -> SceneFrame:
        """Render frame t, several samples per pixel, and its truth."""
        if self.shutter:
            moments = t + self.shutter * (np.arange(SHUTTER_SAMPLES) / (SHUTTER_SAMPLES - 1) - 0.5)
            points = self.grid()
        else:
            moments, points = np.array([float(t)]), self.grid(SUPERSAMPLING)
        samples = [self.sample(points, moment) for moment in moments]
        rgb, alpha = (sum(parts) / len(parts) for parts in zip(*samples, strict=True))
        size = (self.width, self.height)
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        alpha = np.stack([cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in alpha])
        return SceneFrame(
            np.clip(np.rint(rgb), 0, 255).astype(np.uint8),
            alpha,
            self.front_layer(self.grid(), t),
            self.light_at(self.grid(), t),
        )

    def sample(self, points: Floats, t: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colour (H, W, 3) in 0..255 and the objects' opacities (F, H, W) at frame positions (H, W, 2)."""
        background = self.layers[-1]
        color = background.color_at(background.to_photograph(points, t)) * self.light_at(points, t)[..., None]
        alphas = []
        for layer in reversed(self.layers[:-1]):
            places = layer.to_photograph(points, t)
            opacity = np.float32(layer.opacity_at(places))
            color = layer.color_at(places) * opacity[..., None] + color * (1 - opacity[..., None])
            alphas.append(opacity)
        return color, np.stack(alphas[::-1])

    def front_layer(self, points: Floats, t: int) -> NDArray[np.uint8]:
        """(H, W) the front-most layer that is at least half opaque at frame positions (H, W, 2)."""
        result = np.full(points.shape[:2], len(self.layers) - 1, np.uint8)
        for index in reversed(range(len(self.layers) - 1)):
            layer = self.layers[index]
            result[layer.opacity_at(layer.to_photograph(points, t)) >= 0.5] = index
        return result

    def photograph_positions(self, t: int) -> Floats:
        """(L, H, W, 2): where every pixel lies in each layer's photograph, visible or not."""
        return np.stack([layer.to_photograph(self.grid(), t) for layer in self.layers])

    def move_points(self, points: Floats, visible: NDArray[np.uint8], t: int, other: int) -> Floats:
        """Frame positions (..., 2) at time t, each on its given layer (...), as positions at another time."""
        ends = np.empty_like(points)
        for index, layer in enumerate(self.layers):
            here = visible == index
            ends[here] = layer.to_frame(layer.to_photograph(points[here], t), other)
        return ends

    def is_visible(self, points: Floats, visible: NDArray[np.uint8], t: int) -> NDArray[np.bool_]:
        """Whether positions (H, W, 2) lie in frame t and show the given layers (H, W) there."""
        inside = (points >= 0).all(-1) & (points[..., 0] <= self.width - 1) & (points[..., 1] <= self.height - 1)
        return inside & (self.front_layer(points, t) == visible)

    def flow(self, t: int, other: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Exact flow (H, W, 2) from frame t to another, and where its end is visible there (H, W)."""
        points, visible = self.grid(), self.front_layer(self.grid(), t)
        ends = self.move_points(points, visible, t, other)
        return (ends - points).astype(np.float32), self.is_visible(ends, visible, other)
