"""A scene: photographs that move in known ways, so that frames, opacity, flow and positions are exact.

Positions are (x, y) in pixels, as everywhere in the project: the center of the upper left pixel is (0, 0).
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

SUPERSAMPLING = 3  # samples per pixel along each axis
SHUTTER_SAMPLES = 9  # moments averaged for motion blur; blur smooths edges, so one sample per pixel is then enough
BEHIND_CAMERA_PX = 1e6  # position in the frame of what is behind the camera
EDGE_PX = 1.0  # width of the soft edge of a shape, pixels of the photograph


@dataclass(frozen=True)
class Pose:
    """Position of a photograph in a frame. The photograph is bent, then rotated, scaled and moved."""

    x: float  # position of the photograph's pivot in the frame, pixels
    y: float
    angle: float = 0.0  # radians
    scale: float = 1.0
    bend: float = 0.0  # amplitude of a wave that shifts columns up and down, pixels of the photograph
    bend_phase: float = 0.0  # radians


@dataclass(frozen=True)
class Layer:
    """A photograph with its pose over time and its opacity. Photograph pixels are positions (x, y) in it."""

    photograph: NDArray[np.uint8]  # (h, w, 3)
    pose: Callable[[float], Pose]  # time in frames -> pose
    opacity: Callable[[Floats], Floats] | None = None  # photograph pixels (..., 2) -> (...); None: opaque everywhere
    wavelength_px: float = 200.0  # wavelength of the bend, pixels of the photograph

    @property
    def pivot(self) -> Floats:
        """Center of the photograph, (2,) photograph pixels; poses rotate around it."""
        height, width = self.photograph.shape[:2]
        return np.array([(width - 1) / 2, (height - 1) / 2])

    def to_photograph(self, points: Floats, t: float) -> Floats:
        """Convert frame pixels (..., 2) at time t to photograph pixels (..., 2)."""
        pose = self.pose(t)
        local = rotate(points - [pose.x, pose.y], -pose.angle) / pose.scale
        return shift_columns(local, pose, self.wavelength_px, -1) + self.pivot

    def to_frame(self, points: Floats, t: float) -> Floats:
        """Convert photograph pixels (..., 2) to frame pixels (..., 2) at time t. This inverts `to_photograph`."""
        pose = self.pose(t)
        local = shift_columns(points - self.pivot, pose, self.wavelength_px, 1)
        return rotate(local * pose.scale, pose.angle) + [pose.x, pose.y]

    def opacity_at(self, points: Floats) -> Floats:
        """Return the opacity (...) in [0, 1] at photograph pixels (..., 2)."""
        return np.ones(points.shape[:-1]) if self.opacity is None else self.opacity(points)

    def color_at(self, points: Floats) -> Floats:
        """Return the colours (H, W, 3) float32 in [0, 255] at photograph pixels (H, W, 2)."""
        return sample_photograph(self.photograph, points)


@dataclass(frozen=True)
class View:
    """Direction and zoom of a camera that stays in its place."""

    pan: float  # radians to the right
    tilt: float  # radians downwards
    focal_px: float  # pixels of the frame


@dataclass(frozen=True)
class Panorama:
    """A photograph on a cylinder around a camera that turns and zooms; it has the interface of `Layer`."""

    photograph: NDArray[np.uint8]  # (h, w, 3)
    view: Callable[[float], View]  # time in frames -> view
    radius_px: float  # pixels of the photograph per radian
    frame_size: tuple[int, int]  # width and height

    @property
    def pivot(self) -> Floats:
        """Center of the photograph, (2,) photograph pixels, at which the camera looks without pan and tilt."""
        height, width = self.photograph.shape[:2]
        return np.array([(width - 1) / 2, (height - 1) / 2])

    @property
    def frame_center(self) -> Floats:
        """Center of the frame, (2,) frame pixels."""
        return (np.array(self.frame_size) - 1) / 2

    def to_photograph(self, points: Floats, t: float) -> Floats:
        """Convert frame pixels (..., 2) at time t to photograph pixels (..., 2)."""
        view = self.view(t)
        rays = np.concatenate(((points - self.frame_center) / view.focal_px, np.ones_like(points[..., :1])), axis=-1)
        x, y, z = np.moveaxis(rays @ camera_matrix(view).T, -1, 0)
        unrolled = np.stack((np.arctan2(x, z), y / np.hypot(x, z)), axis=-1)
        return unrolled * self.radius_px + self.pivot

    def to_frame(self, points: Floats, t: float) -> Floats:
        """Convert photograph pixels (..., 2) to frame pixels (..., 2); those behind the camera go far away."""
        view = self.view(t)
        angle, height = np.moveaxis((points - self.pivot) / self.radius_px, -1, 0)
        rays = np.stack((np.sin(angle), height, np.cos(angle)), axis=-1) @ camera_matrix(view)
        depth = rays[..., 2:]
        in_front = rays[..., :2] / np.where(depth > 0, depth, 1) * view.focal_px + self.frame_center
        return np.where(depth > 0, in_front, BEHIND_CAMERA_PX)

    def opacity_at(self, points: Floats) -> Floats:
        """Return the opacity (...) at photograph pixels (..., 2): 1 everywhere."""
        return np.ones(points.shape[:-1])

    def color_at(self, points: Floats) -> Floats:
        """Return the colours (H, W, 3) float32 in [0, 255] at photograph pixels (H, W, 2)."""
        return sample_photograph(self.photograph, points)


def camera_matrix(view: View) -> Floats:
    """Return the rotation (3, 3) from the camera's rays (x right, y down, z forward) to those of the cylinder."""
    pan, tilt = view.pan, view.tilt
    turned = np.array([[np.cos(pan), 0, np.sin(pan)], [0, 1, 0], [-np.sin(pan), 0, np.cos(pan)]])
    tilted = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    return turned @ tilted


def sample_photograph(photograph: NDArray[np.uint8], points: Floats) -> Floats:
    """Return the colours (H, W, 3) float32 in [0, 255] of a photograph at its pixels (H, W, 2).

    Interpolation is cubic. The photograph is mirrored at its border.
    """
    x, y = points.astype(np.float32).transpose(2, 0, 1)
    color = cv2.remap(photograph, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return color.astype(np.float32)


def covered_part(opacity: Floats) -> tuple[slice, slice]:
    """Return the rows and columns around everything that an opacity (H, W) covers, at least one of each."""
    rows, columns = (np.flatnonzero(opacity.any(axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def rotate(points: Floats, angle: float) -> Floats:
    """Rotate positions (..., 2) around the origin by an angle in radians, from x towards y."""
    x, y, cosine, sine = points[..., 0], points[..., 1], np.cos(angle), np.sin(angle)
    return np.stack((cosine * x - sine * y, sine * x + cosine * y), axis=-1)


def shift_columns(points: Floats, pose: Pose, wavelength_px: float, sign: int) -> Floats:
    """Shift positions (..., 2) up or down by the pose's wave, which depends on x only.

    sign 1 applies the wave and sign -1 removes it exactly.
    """
    if not pose.bend:
        return points
    wave = pose.bend * np.sin(2 * np.pi * points[..., 0] / wavelength_px + pose.bend_phase)
    return np.stack((points[..., 0], points[..., 1] + sign * wave), axis=-1)


def lengths(vectors: Floats) -> Floats:
    """Return the lengths (...) of vectors (..., 2)."""
    return np.sqrt(np.square(vectors[..., 0]) + np.square(vectors[..., 1]))


def ellipse(center: tuple[float, float], radii: tuple[float, float]) -> Callable[[Floats], Floats]:
    """Return the opacity function of an ellipse with a soft edge, for `Layer.opacity`. Units are photograph pixels."""

    def opacity(points: Floats) -> Floats:
        offset = (points - center) / radii
        radius = lengths(offset)  # 1 on the outline
        slope_per_px = lengths(offset / radii) / np.maximum(radius, 1e-9)  # gradient of the radius
        return np.clip(0.5 - (radius - 1) / np.maximum(slope_per_px, 1e-9) / EDGE_PX, 0, 1)

    return opacity


@dataclass(frozen=True)
class SceneFrame:
    """One rendered frame with its ground truth. F is the number of foreground objects."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    alpha: Floats  # (F, H, W) float32, exact opacity of each object without regard to the objects in front of it
    front_layer: NDArray[np.uint8]  # (H, W) index of the layer visible at the pixel's center; 0 is the front layer
    light: Floats  # (H, W) float32 factor of the background's colours


@dataclass(frozen=True)
class Scene:
    """Layers front to back, the background last, over a number of frames. There are L layers and F = L - 1 objects."""

    name: str
    width: int
    height: int
    frames: int
    layers: tuple[Layer | Panorama, ...]
    shutter: float = 0.0  # exposure time in frames, which makes motion blur; 0: none
    light: Callable[[Floats, float], Floats] | None = None  # frame pixels (H, W, 2), time -> factor of the background

    @property
    def objects(self) -> int:
        """Number of foreground layers."""
        return len(self.layers) - 1

    def grid(self, samples_per_px: int = 1) -> Floats:
        """Return positions in a frame, (H * samples_per_px, W * samples_per_px, 2), spread evenly within the pixels.

        With one sample per pixel they are the centers of the pixels.
        """
        x = (np.arange(self.width * samples_per_px) + 0.5) / samples_per_px - 0.5
        y = (np.arange(self.height * samples_per_px) + 0.5) / samples_per_px - 0.5
        return np.stack(np.meshgrid(x, y), axis=-1)

    def light_at(self, points: Floats, t: float) -> Floats:
        """Return the factor (H, W) float32 of the background's colours at frame pixels (H, W, 2)."""
        if self.light is None:
            return np.ones(points.shape[:2], np.float32)
        return self.light(points, t).astype(np.float32)

    def frame(self, t: int) -> SceneFrame:
        """Render frame t, with several samples per pixel, and its ground truth."""
        rgb, alpha = self.render(t, self.background_at)
        return SceneFrame(
            np.clip(np.rint(rgb), 0, 255).astype(np.uint8),
            alpha,
            self.front_layer(self.grid(), t),
            self.light_at(self.grid(), t),
        )

    def objects_over(self, t: int, color: Floats) -> Floats:
        """Render the objects of frame t over one colour (3,) in [0, 1] instead of the background, (H, W, 3)."""
        plain = np.float32(255) * np.asarray(color, np.float32)
        return self.render(t, lambda points, _: np.broadcast_to(plain, (*points.shape[:2], 3)))[0] / 255

    def render(self, t: int, background: Callable[[Floats, float], Floats]) -> tuple[Floats, Floats]:
        """Return the colours (H, W, 3) in [0, 255] of frame t and the objects' opacities (F, H, W).

        background: frame pixels (h, w, 2) and a time -> colours (h, w, 3).
        """
        if self.shutter:
            moments = t + self.shutter * (np.arange(SHUTTER_SAMPLES) / (SHUTTER_SAMPLES - 1) - 0.5)
            points = self.grid()
        else:
            moments, points = np.array([float(t)]), self.grid(SUPERSAMPLING)
        samples = [self.sample(points, moment, background(points, moment)) for moment in moments]
        rgb, alpha = (sum(values) / len(values) for values in zip(*samples, strict=True))
        size = (self.width, self.height)
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return rgb, np.stack([cv2.resize(opacity, size, interpolation=cv2.INTER_AREA) for opacity in alpha])

    def background_at(self, points: Floats, t: float) -> Floats:
        """Return the background's colours (H, W, 3) in [0, 255] with its light at frame pixels (H, W, 2)."""
        background = self.layers[-1]
        return background.color_at(background.to_photograph(points, t)) * self.light_at(points, t)[..., None]

    def sample(self, points: Floats, t: float, color: Floats) -> tuple[Floats, Floats]:
        """Return colours (H, W, 3) in [0, 255] and the objects' opacities (F, H, W) at frame pixels (H, W, 2).

        color (H, W, 3): that of the background.
        """
        alphas = []
        for layer in reversed(self.layers[:-1]):
            photograph_points = layer.to_photograph(points, t)
            opacity = layer.opacity_at(photograph_points).astype(np.float32)
            part = covered_part(opacity)  # The photograph does not show elsewhere.
            own, share = layer.color_at(photograph_points[part]), opacity[part][..., None]
            color = color.copy()
            color[part] = own * share + color[part] * (1 - share)
            alphas.append(opacity)
        return color, np.stack(alphas[::-1])

    def background_frame(self, t: int) -> NDArray[np.uint8]:
        """Render the background of frame t alone, (H, W, 3), without objects and without the factor `light`."""
        points, background = self.grid(SUPERSAMPLING), self.layers[-1]
        color = background.color_at(background.to_photograph(points, t))
        small: NDArray = cv2.resize(color, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.clip(np.rint(small), 0, 255).astype(np.uint8)

    def front_layer(self, points: Floats, t: int) -> NDArray[np.uint8]:
        """Return the index (H, W) of the visible layer at frame pixels (H, W, 2).

        It is the front layer among those with an opacity of at least 0.5.
        """
        result = np.full(points.shape[:2], len(self.layers) - 1, np.uint8)
        for index in reversed(range(len(self.layers) - 1)):
            layer = self.layers[index]
            result[layer.opacity_at(layer.to_photograph(points, t)) >= 0.5] = index
        return result

    def photograph_positions(self, t: int) -> Floats:
        """Return the photograph pixels of every pixel of frame t in every layer, visible or not: (L, H, W, 2)."""
        return np.stack([layer.to_photograph(self.grid(), t) for layer in self.layers])

    def move_points(self, points: Floats, layers: NDArray[np.uint8], t: int, other: int) -> Floats:
        """Move frame pixels (..., 2) from time t to another time. layers: the layer of each point, (...)."""
        moved = np.empty_like(points)
        for index, layer in enumerate(self.layers):
            is_here = layers == index
            moved[is_here] = layer.to_frame(layer.to_photograph(points[is_here], t), other)
        return moved

    def is_visible(self, points: Floats, layers: NDArray[np.uint8], t: int) -> NDArray[np.bool_]:
        """Return whether frame pixels (H, W, 2) lie inside frame t and show the given layers (H, W) there."""
        is_inside = (points >= 0).all(-1) & (points[..., 0] <= self.width - 1) & (points[..., 1] <= self.height - 1)
        return is_inside & (self.front_layer(points, t) == layers)

    def flow(self, t: int, other: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the exact flow (H, W, 2) float32 from frame t to another, and where its target is visible, (H, W)."""
        points, layers = self.grid(), self.front_layer(self.grid(), t)
        targets = self.move_points(points, layers, t, other)
        return (targets - points).astype(np.float32), self.is_visible(targets, layers, other)
