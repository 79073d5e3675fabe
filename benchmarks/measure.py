"""Metrics that compare a trained run with the truth of the exact scene on which it was trained."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from editing.attachment import attach_paint
from editing.layer_edit import LayerEdit
from editing.new_shape import clear_free_part, find_free_part
from editing.render_edits import sample_attached, sample_edit_layers
from editing.splatting import splat_attached, splat_frame
from evaluation.image_metrics import psnr
from evaluation.mapping_metrics import placement_summary
from evaluation.mask_metrics import alpha_error, boundary_f, iou
from evaluation.temporal_metrics import warp_error
from media.clip import evenly_spaced_indices
from rendering.atlas_view import compute_atlas_uv
from rendering.blending import apply_edits, composite_edits
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame
from rendering.inverse import locate_uv
from rendering.trained_run import TrainedRun
from scenes.catalogue import HAT_CENTER, HAT_RADII
from scenes.scene import Scene, ellipse

Flags = NDArray[np.bool_]

MARKS = 200  # Marks on each marked frame.
MARKED_FRAMES = 3  # Frames with marks or paint: at a quarter, half and three quarters of the clip.
TARGET_FRAMES = 8  # Frames, evenly spaced, in which marks and paint are compared with the truth.
LARGEST_STEP_PX = 1.0  # Largest distance of a mark from the pixel with the nearest uv, along each axis.
GREY = 0.5  # Colour of the frames below the paint, in [0, 1].
LONG_RANGE = 10  # Frames between two frames of the warp error over a long time.


def measure_opacity(store: FrameStore, scene: Scene) -> dict[str, float]:
    """Return J, F and the mean absolute error of the foreground's opacity, each as a mean over the frames."""
    values: dict[str, list[float]] = {"iou": [], "boundary_f": [], "alpha_error": []}
    for frame in store.frames():
        truth = 1 - np.prod(1 - scene.frame(frame.t).alpha, axis=0)
        values["iou"].append(iou(frame.coverage > VISIBLE, truth > VISIBLE))
        values["boundary_f"].append(boundary_f(frame.coverage > VISIBLE, truth > VISIBLE))
        values["alpha_error"].append(alpha_error(frame.coverage, truth))
    return {name: float(np.mean(per_frame)) for name, per_frame in values.items()}


def choose_mark_frames(count: int) -> list[int]:
    """Return the numbers of the frames that get marks or paint, in a clip of `count` frames."""
    fractions = np.arange(1, MARKED_FRAMES + 1) / (MARKED_FRAMES + 1)
    return sorted({min(round(count * fraction), count - 1) for fraction in fractions})


def placement_errors(run: TrainedRun, store: FrameStore, scene: Scene, seed: int = 0) -> Floats:
    """Return the distances (N,) in pixels between tracked marks and the truth.

    A mark is put on a random pixel of a marked frame. As an edit would, it moves with the layer that is most visible in
    this pixel. Its position in the target frames is compared with the truth wherever the scene really shows the marked
    point. seed: of the random pixels.
    """
    rng = np.random.default_rng(seed)
    errors: list[Floats] = []
    target_times = evenly_spaced_indices(len(run.clip), TARGET_FRAMES)
    targets = [(t, compute_atlas_uv(run.model, store.frame(t)).numpy()) for t in target_times]
    for t in choose_mark_frames(len(run.clip)):
        frame = store.frame(t)
        atlas_uv, layers = compute_atlas_uv(run.model, frame).numpy(), frame.visibility.argmax(0)
        marks = np.stack((rng.integers(0, scene.width, MARKS), rng.integers(0, scene.height, MARKS)), axis=1)
        x, y = marks.T
        true_layers = scene.front_layer(scene.grid(), t)[y, x]
        for other, other_uv in targets:
            if other == t:
                continue
            true_positions = scene.move_points(marks.astype(float), true_layers, t, other)
            visible = scene.is_visible(true_positions[None], true_layers[None], other)[0]
            for layer, layer_uv in enumerate(other_uv):
                chosen = visible & (layers[y, x] == layer)
                if chosen.any():
                    positions, _ = locate_uv(atlas_uv[layer][y[chosen], x[chosen]], layer_uv, LARGEST_STEP_PX)
                    errors.append(np.linalg.norm(positions - true_positions[chosen], axis=1))
    return np.concatenate(errors)


def wave_pattern(points: Floats) -> Floats:
    """Return colours (..., 3) in [0, 1] at frame positions (..., 2): smooth waves of a different length per channel."""
    x, y = points[..., 0], points[..., 1]
    waves = (np.sin(x / 9), np.sin(y / 8), np.sin((x + y) / 13))
    return np.stack([0.5 + 0.4 * wave for wave in waves], axis=-1)


def paint_frame(run: TrainedRun, store: FrameStore, scene: Scene, t: int) -> list[LayerEdit]:
    """Return the edits of all layers that come from painting the wave pattern on the whole of frame t."""
    paint = np.dstack((wave_pattern(scene.grid()), np.ones((scene.height, scene.width)))).astype(np.float32)
    return splat_frame(run.model, store.frame(t), paint, list(range(len(run.model.layers))))


def round_trip_psnrs(run: TrainedRun, store: FrameStore, scene: Scene) -> Iterator[float]:
    """Yield the PSNR (dB) of a pattern that is painted on one frame and rendered in another one.

    It is compared with the pattern that the true motion moves to the other frame, over a grey frame, and only where
    the other frame really shows what the painted frame shows.
    """
    for t in choose_mark_frames(len(run.clip)):
        edits = paint_frame(run, store, scene, t)
        for other in evenly_spaced_indices(len(run.clip), TARGET_FRAMES):
            points, layers = scene.grid(), scene.front_layer(scene.grid(), other)
            origins = scene.move_points(points, layers, other, t)
            visible = scene.is_visible(origins, layers, t)
            if other == t or not visible.any():
                continue
            grey = np.full((scene.height, scene.width, 3), GREY, np.float32)
            edited = apply_edits(grey, sample_edit_layers(run, store.frame(other), edits))
            yield psnr(edited[visible], wave_pattern(origins[visible]))


def measure_steadiness(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """Return the warp error of a pattern painted on the middle frame, between neighbours and over LONG_RANGE frames."""
    edits = paint_frame(run, store, scene, len(run.clip) // 2)

    def edit_frame(frame: Frame) -> Floats:
        source = run.clip.frame(frame.t).astype(np.float32) / 255
        return apply_edits(source, sample_edit_layers(run, frame, edits), frame.light)

    metrics = {}
    for name, step in (("warp_error_short", 1), ("warp_error_long", LONG_RANGE)):
        errors = []
        for t in evenly_spaced_indices(len(run.clip), TARGET_FRAMES):
            if t + step < len(run.clip):
                flow, visible = scene.flow(t, t + step)
                edited, other = edit_frame(store.frame(t)), edit_frame(store.frame(t + step))
                errors.append(warp_error(edited, other, flow, visible))
        known = [error for error in errors if error is not None]
        if known:
            metrics[name] = float(np.mean(known))
    return metrics


def measure_hat(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """Measure paint that leaves the silhouette: a hat, painted on the middle frame and attached to the front object.

    Returns the mean distance in pixels of points of the hat from their true places in other frames, and the mean PSNR
    (dB) of the hat's pattern there, compared where the scene would show the hat.
    """
    t, cat, in_hat = len(run.clip) // 2, scene.layers[0], ellipse(HAT_CENTER, HAT_RADII)
    start = attach_paint(store.frame(t), [0])

    def draw_hat(time: int) -> tuple[Floats, Floats]:
        """Return the hat's colours (H, W, 3) and its opacity (H, W) in a frame."""
        places = cat.to_photograph(scene.grid(), time)
        return wave_pattern(places), in_hat(places)

    color, opacity = draw_hat(t)
    rgba = np.dstack((color * opacity[..., None], opacity)).astype(np.float32)
    edit = splat_attached(run.model, start, rgba, 0)
    y, x = np.nonzero(opacity > VISIBLE)
    if edit is None or len(x) == 0:
        return {}
    chosen = np.linspace(0, len(x) - 1, min(MARKS, len(x))).astype(int)
    marks = np.stack((x[chosen], y[chosen]), axis=1).astype(float)
    errors, psnrs = [], []
    for other in evenly_spaced_indices(len(run.clip), TARGET_FRAMES):
        frame = attach_paint(store.frame(other), [0])
        true_places = cat.to_frame(cat.to_photograph(marks, t), other)
        inside = ((true_places >= 0) & (true_places <= [scene.width - 1, scene.height - 1])).all(1)
        true_color, true_opacity = draw_hat(other)
        is_hat = true_opacity >= 1
        if other == t or not inside.any() or not is_hat.any():
            continue
        positions, _ = locate_uv(start.uv[0][y[chosen], x[chosen]], frame.uv[0])
        errors.append(np.linalg.norm(positions - true_places, axis=1)[inside].mean())
        grey = np.full((scene.height, scene.width, 3), GREY, np.float32)
        painted, covered = composite_edits(grey, [], attached=sample_attached(run, frame, [edit]))
        psnrs.append(psnr((grey * (1 - covered) + painted)[is_hat], true_color[is_hat]))
    return {"hat_px": float(np.mean(errors)), "hat_psnr": float(np.mean(psnrs))} if errors else {}


def measure_shape(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """Measure a new shape: on the middle frame only the upper half of the front object remains.

    Returns the mean PSNR (dB) of what then shows in place of the lower half in other frames, against the background's
    true picture. Nothing is returned for scenes with several objects.
    """
    t, front = len(run.clip) // 2, scene.layers[0]
    if scene.objects > 1:
        return {}

    def remains(time: int) -> Flags:
        """Return which pixels (H, W) of a frame lie in the upper half of the object's photograph."""
        return np.asarray(front.to_photograph(scene.grid(), time)[..., 1] < front.pivot[1])

    part = find_free_part(run.model, attach_paint(store.frame(t), [0]), remains(t).astype(np.float32), 0)
    if part is None:
        return {}
    psnrs = []
    for other in evenly_spaced_indices(len(run.clip), TARGET_FRAMES):
        is_freed = (scene.front_layer(scene.grid(), other) == 0) & ~remains(other)
        if other == t or not is_freed.any():
            continue
        frame = store.frame(other)
        size = scene.width, scene.height
        _, behind, cleared = clear_free_part(run.model, frame, attach_paint(frame, [0]), part, max(size))
        picture = run.clip.frame(other).astype(np.float32) / 255 * (1 - cleared) + behind
        psnrs.append(psnr(picture[is_freed], scene.background_at(scene.grid(), other)[is_freed] / 255))
    return {"shape_psnr": float(np.mean(psnrs))} if psnrs else {}


def measure_against_scene(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """Return all metrics that need the truth of the scene.

    store: all frames of the run. Raises ValueError if the run was trained at another size than the scene's.
    """
    if (run.clip.width, run.clip.height, len(run.clip)) != (scene.width, scene.height, scene.frames):
        raise ValueError(
            f"the run is {run.clip.width} x {run.clip.height} x {len(run.clip)}, "
            f"the scene {scene.width} x {scene.height} x {scene.frames}"
        )
    metrics = measure_opacity(store, scene) | placement_summary(placement_errors(run, store, scene))
    psnrs = [value for value in round_trip_psnrs(run, store, scene) if math.isfinite(value)]
    if psnrs:
        metrics["round_trip_psnr"] = float(np.mean(psnrs))
    metrics |= measure_steadiness(run, store, scene) | measure_hat(run, store, scene)
    return metrics | measure_shape(run, store, scene)
