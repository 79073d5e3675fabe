"""Choose how the background lies in its atlas: on a plane, or on a cylinder around a camera that turns.

On a plane a wide pan becomes a bow tie: far from the reference frame a homography stretches without limit, and the
other end gets a few texels. So the spread of the texels' density is measured, and where it is large, a camera that only
turns and zooms is fitted (Szeliski 2006, image stitching), whose atlas is a cylinder; or similarities, if the camera
does more than that."""

from dataclasses import dataclass

import cv2
import numpy as np

from alignment.layers import align_layer, reference_frame, refine_layer_long_range
from alignment.long_range import match_distant_frames
from alignment.still_camera import are_still
from alignment.tracks import POINTS_PER_PAIR, Floats, LayerPixels, PointPairs, sample_point_pairs
from alignment.transforms import (
    MIN_GAIN,
    OUTLIER_PX,
    chain_transforms,
    gauss_newton_step,
    median_residual_px,
    motion_generators,
    to_unit_matrix,
    transform_points,
)
from unwrap_utils import Video

MAX_SPREAD = 1.5  # Ratio of the largest to the smallest density of texels up to which the plane is kept.
MIN_IMPROVEMENT = 1.2  # Factor by which another surface must lower that ratio; zooming alone changes it on all of them.
SPREAD_QUANTILES = (0.02, 0.98)  # Densities between these quantiles count.
LATTICE = 9  # Points along each side of a frame at which the density is measured.
MAX_SPREAD_GROWTH = 1.2  # Factor by which the freedom of homographies may increase the spread on a cylinder.
# Focal lengths that are tried, in halves of the long edge: fields of view of 118 to 18 degrees along it.
FOCAL_LENGTHS = (0.6, 0.85, 1.2, 1.7, 2.4, 3.4, 4.8, 6.4)
SEARCH_STEPS, FINAL_STEPS = 5, 15  # Gauss-Newton steps for each focal length, and for the best one.
FOCAL_REFINEMENTS = 3  # Number of times that the step between focal lengths is halved around the best one.
MAX_ANGLE = np.radians(340)  # Largest angle around its axis that the frames may show of a cylinder.
# Points (n, 2) along the outline of a frame, as shares of its width and height: on a cylinder its sides are curved.
OUTLINE_SHARES = np.array([[x, y] for x in np.linspace(0, 1, 9) for y in np.linspace(0, 1, 9) if {x, y} & {0.0, 1.0}])
# Largest median residual of another surface, in pixels and as a multiple of the plane's. With more, even texels are not
# worth it: a drone that tilts over flat ground is fitted by homographies alone.
MAX_RESIDUAL_PX, MAX_RESIDUAL_GROWTH = 1.0, 3.0


@dataclass(frozen=True)
class Surface:
    """How the frames of a layer lie in its atlas.

    On a plane, transforms (T, 3, 3) lead from pixels of each frame to pixels of a reference frame. On a cylinder they
    lead to rays (x, y, z) of a camera that looks along z; the cylinder's axis is y, and its radius is 1.
    """

    transforms: Floats  # (T, 3, 3)
    is_cylinder: bool = False
    # (2, 2) rotation of the unrolled cylinder's (angle, height), after which the reference frame stands upright
    upright: Floats | None = None

    @property
    def upright_matrix(self) -> Floats:
        """The rotation `upright` as a matrix (3, 3) of homogeneous positions."""
        matrix = np.eye(3)
        if self.upright is not None:
            matrix[:2, :2] = self.upright
        return matrix

    def unroll(self, points: Floats) -> Floats:
        """Return where points (N, 2) of all frames, in pixels, lie on the flattened surface, (T, N, 2)."""
        homogeneous = np.concatenate((points, np.ones_like(points[:, :1])), axis=1) @ self.transforms.swapaxes(1, 2)
        if not self.is_cylinder:
            return homogeneous[..., :2] / homogeneous[..., 2:]
        x, y, z = np.moveaxis(homogeneous, -1, 0)
        unrolled = np.stack((np.arctan2(x, z), y / np.hypot(x, z)), axis=-1)
        return unrolled if self.upright is None else unrolled @ self.upright.T


def choose_surface(video: Video, mask: LayerPixels, transforms: Floats) -> tuple[Surface, PointPairs | None]:
    """Return the surface on which the background is least distorted; transforms: its homographies (T, 3, 3).

    video: on the CPU. mask: (T, H, W), the pixels of the background. If the surface is not the plane of the
    homographies, the matches of distant frames by which it was fitted are returned, too, and a line is printed.
    """
    size = video.size[1:]
    plane = Surface(transforms)
    if are_still(transforms):
        return plane, None
    spread = density_spread(plane, size)
    # Without perspective, homographies have failed: the pan may be too wide for any plane.
    is_projective = bool(np.any(transforms[:, 2, :2] != 0))
    pairs = sample_point_pairs(video, mask)
    if (is_projective and spread <= MAX_SPREAD) or len(pairs.source) == 0:
        return plane, None
    surfaces, matches_of = [plane], {}
    if is_projective:
        similarities = align_layer(video, mask, "similarity")
        distant = match_distant_frames(video, mask, similarities)
        surfaces.append(Surface(refine_layer_long_range(video, similarities, mask, "similarity", distant)))
        matches_of[id(surfaces[-1])] = distant
    cylinder, distant = fit_cylinder(video, mask, pairs)
    if cylinder is not None:
        surfaces.append(cylinder)
        matches_of[id(cylinder)] = distant
    residuals = {id(each): median_residual_px(each.transforms, pairs) for each in surfaces}
    if is_projective:
        limit = max(MAX_RESIDUAL_PX, MAX_RESIDUAL_GROWTH * residuals[id(plane)])
        better = [each for each in surfaces[1:] if density_spread(each, size) * MIN_IMPROVEMENT < spread]
        surfaces = [each for each in better if residuals[id(each)] <= limit] or [plane]
    best = min(surfaces, key=lambda surface: residuals[id(surface)])
    if best is not plane:
        kind = "a plane without perspective"
        if best.is_cylinder:
            kind = f"a cylinder, because the camera turns by {np.degrees(turn_angle(best, size)):.0f} degrees"
        print(f"background: its atlas is {kind}; texels vary by a factor of {density_spread(best, size):.1f}")
    return best, matches_of.get(id(best))


def density_spread(surface: Surface, size: tuple[int, int]) -> float:
    """Return the ratio of the largest to the smallest density of texels over all frames of (height, width)."""
    height, width = size
    grid = np.stack(np.meshgrid(np.linspace(0, width - 1, LATTICE), np.linspace(0, height - 1, LATTICE)), axis=-1)
    with np.errstate(all="ignore"):
        unrolled = surface.unroll(grid.reshape(-1, 2)).reshape(-1, LATTICE, LATTICE, 2)
        along_x, along_y = np.gradient(unrolled, axis=2), np.gradient(unrolled, axis=1)
        areas = np.abs(along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0])
        low, high = np.quantile(np.sqrt(areas), SPREAD_QUANTILES)
    return float(high / low) if low > 0 and np.isfinite(high) else float("inf")


def turn_angle(cylinder: Surface, size: tuple[int, int]) -> float:
    """Return the angle in radians by which a camera turns around its cylinder's axis; frames of (height, width)."""
    looks = cylinder.transforms @ middle_pixel(size)
    return float(np.ptp(np.unwrap(np.arctan2(looks[:, 0], looks[:, 2]))))


def angle_range(cylinder: Surface, size: tuple[int, int]) -> tuple[float, float]:
    """Return the smallest and the largest angle in radians, around its axis, that the frames show of a cylinder."""
    looks = cylinder.transforms @ middle_pixel(size)
    middle_angles = np.unwrap(np.arctan2(looks[:, 0], looks[:, 2]))
    rays = (OUTLINE_SHARES * [size[1] - 1, size[0] - 1]) @ cylinder.transforms[:, :, :2].swapaxes(1, 2)
    rays = rays + cylinder.transforms[:, None, :, 2]
    # Relative to the middle of the frame no angle is as large as half a turn, so none is ambiguous.
    offsets = np.angle(np.exp(1j * (np.arctan2(rays[..., 0], rays[..., 2]) - middle_angles[:, None])))
    angles = middle_angles[:, None] + offsets
    return float(angles.min()), float(angles.max())


def middle_pixel(size: tuple[int, int]) -> Floats:
    """Return the homogeneous position (3,) of the middle of frames of (height, width), in pixels."""
    return np.array([(size[1] - 1) / 2, (size[0] - 1) / 2, 1.0])


def fit_cylinder(video: Video, mask: LayerPixels, pairs: PointPairs) -> tuple[Surface | None, PointPairs]:
    """Fit a camera that turns and zooms to a layer's point pairs, and lay a cylinder around it.

    Returns the cylinder, or None if that fails or if the camera turns too far, and the matches of distant frames that
    were used. video: on the CPU. mask: (T, H, W), the layer's pixels.
    """
    size, reference = video.size[1:], reference_frame(mask)
    homographies = chain_transforms(pairs, len(mask), reference, "homography")
    focal = search_focal_length(homographies, pairs, reference, size)
    rays, _ = fit_rotations(homographies, pairs, reference, size, focal, FINAL_STEPS)
    distant = match_distant_frames(video, mask, rays)
    if len(distant.source):
        pairs = pairs + distant.first_points(POINTS_PER_PAIR)
    rays, _ = fit_rotations(rays, pairs, reference, size, focal, FINAL_STEPS)
    cylinders = [straighten(each, reference, size) for each in (fit_rays(rays, pairs, reference, size, focal), rays)]
    for cylinder in cylinders:
        is_usable = bool(np.isfinite(cylinder.transforms).all()) and np.ptp(angle_range(cylinder, size)) < MAX_ANGLE
        if is_usable and density_spread(cylinder, size) < MAX_SPREAD_GROWTH * density_spread(cylinders[-1], size):
            return cylinder, distant
    return None, distant


def search_focal_length(homographies: Floats, pairs: PointPairs, reference: int, size: tuple[int, int]) -> float:
    """Return the focal length, in halves of the long edge, with which a turning camera fits the pairs best."""

    def cost_of(focal: float) -> float:
        return fit_rotations(homographies, pairs, reference, size, focal, SEARCH_STEPS)[1]

    costs = {focal: cost_of(focal) for focal in FOCAL_LENGTHS}
    step = np.sqrt(FOCAL_LENGTHS[1] / FOCAL_LENGTHS[0])
    for _ in range(FOCAL_REFINEMENTS):
        best = min(costs, key=lambda focal: costs[focal])
        for focal in (best / step, best * step):
            costs[focal] = cost_of(focal)
        step = np.sqrt(step)
    return min(costs, key=lambda focal: costs[focal])


def fit_rotations(
    start: Floats, pairs: PointPairs, reference: int, size: tuple[int, int], focal: float, max_steps: int
) -> tuple[Floats, float]:
    """Fit a camera that turns and zooms to point pairs, with Gauss-Newton steps over all frames together.

    Returns transforms (T, 3, 3) from pixels to rays of the reference frame's camera, and the robust cost.

    start: (T, 3, 3), a first alignment of the frames of (height, width). focal: focal length of the reference frame, in
    halves of the long edge.
    """
    to_camera = to_camera_matrix(focal, size)
    current = chain_rotations(start, reference, to_camera)
    return minimize(current, pairs, reference, size, focal, "rotation", max_steps)


def fit_rays(rays: Floats, pairs: PointPairs, reference: int, size: tuple[int, int], focal: float) -> Floats:
    """Refine transforms (T, 3, 3) from pixels to rays with all the freedom of homographies.

    A camera in a hand also moves a little, and its lens is not perfect; homographies take up much of both.
    """
    current = rays @ np.linalg.inv(to_camera_matrix(focal, size))
    return minimize(current, pairs, reference, size, focal, "homography", FINAL_STEPS)[0]


def to_camera_matrix(focal: float, size: tuple[int, int]) -> Floats:
    """Return the transform (3, 3) from pixels to coordinates of a camera in which the focal length is 1."""
    return np.diag([1 / focal, 1 / focal, 1]) @ to_unit_matrix(size)


def minimize(
    current: Floats, pairs: PointPairs, reference: int, size: tuple[int, int], focal: float, kind: str, max_steps: int
) -> tuple[Floats, float]:
    """Change transforms (T, 3, 3) from a camera's coordinates to rays until points move as in the pairs.

    kind: how they may change, see `motion_generators`. Returns transforms from pixels to rays, and the robust cost.
    """
    to_camera = to_camera_matrix(focal, size)
    begin, end = (transform_points(to_camera, points) for points in (pairs.start_px, pairs.end_px))
    outlier = OUTLIER_PX / (max(size) / 2 * focal)
    generators, best, best_cost = motion_generators(kind), current, np.inf
    for _ in range(max_steps):
        with np.errstate(all="ignore"):
            steps, cost = gauss_newton_step(current, begin, end, pairs, generators, reference, outlier)
        if not cost < best_cost:  # also true for NaN
            break
        best, gain, best_cost = current, best_cost - cost, cost
        if gain < MIN_GAIN * cost:
            break
        if kind == "rotation":
            changes = np.stack([turn_and_zoom(step) for step in steps])
        else:
            changes = np.eye(3) + np.einsum("tg,gij->tij", steps, generators)
        current = current @ changes
        # Rays have no scale. A positive determinant keeps them in front of the camera.
        current = current / np.cbrt(np.linalg.det(current))[:, None, None]
    return best @ to_camera, float(best_cost)


def turn_and_zoom(step: Floats) -> Floats:
    """Return the matrix (3, 3) of a step (4,): a rotation vector in radians and the logarithm of the zoom."""
    zoom = float(np.exp(np.clip(step[3], -0.5, 0.5)))
    rotation = np.asarray(cv2.Rodrigues(np.asarray(step[:3], float))[0], float)
    return rotation @ np.diag([zoom, zoom, 1])


def chain_rotations(start: Floats, reference: int, to_camera: Floats) -> Floats:
    """Return rotations (T, 3, 3) near the steps between neighbouring frames of an alignment (T, 3, 3).

    to_camera: (3, 3), from pixels to coordinates of the camera in which the focal length is 1.
    """
    rotations = np.tile(np.eye(3), (len(start), 1, 1))
    from_camera = np.linalg.inv(to_camera)

    def step(first: int, second: int) -> Floats:
        """Return the rotation from the camera of one frame to that of another."""
        matrix = to_camera @ np.linalg.inv(start[second]) @ start[first] @ from_camera
        left, _, right = np.linalg.svd(matrix / np.cbrt(np.linalg.det(matrix)))
        return left @ right

    for t in reversed(range(reference)):
        rotations[t] = rotations[t + 1] @ step(t, t + 1)
    for t in range(reference + 1, len(start)):
        rotations[t] = rotations[t - 1] @ step(t, t - 1)
    return rotations


def straighten(rays: Floats, reference: int, size: tuple[int, int]) -> Surface:
    """Return the cylinder whose axis is the one around which the camera turns; the reference frame stands upright.

    Its seam lies opposite the middle of what the frames show. rays: (T, 3, 3), from pixels of frames of (height, width)
    to rays.
    """
    middle = middle_pixel(size)
    looks = rays @ middle
    looks = looks / np.linalg.norm(looks, axis=1, keepdims=True)
    axis = np.linalg.svd(looks)[2][2]  # the direction most nearly perpendicular to all of them
    right, down = rays[reference, :, 0], rays[reference, :, 1]
    axis = axis * np.sign(axis @ down if abs(axis @ down) > abs(axis @ right) else axis @ right)
    forward = looks[reference] - (looks[reference] @ axis) * axis
    forward = forward / np.linalg.norm(forward)
    turned = np.stack((np.cross(axis, forward), axis, forward)) @ rays
    low, high = angle_range(Surface(turned, is_cylinder=True), size)
    to_middle = np.asarray(cv2.Rodrigues(np.array([0.0, -(low + high) / 2, 0.0]))[0], float)
    turned = to_middle @ turned
    ahead = Surface(turned, is_cylinder=True).unroll(np.stack((middle[:2], middle[:2] + [1, 0])))[reference]
    across = (ahead[1] - ahead[0]) / np.linalg.norm(ahead[1] - ahead[0])
    return Surface(turned, is_cylinder=True, upright=np.array([[across[0], across[1]], [-across[1], across[0]]]))
