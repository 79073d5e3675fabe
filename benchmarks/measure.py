"""A trained run against the truth of the scene it was trained on."""

import math
from collections.abc import Iterator

import numpy as np

from editing.render_edits import visible_edits
from editing.splatting import splat_frame
from evaluation.image_metrics import psnr
from evaluation.mapping_metrics import placement_summary
from evaluation.mask_metrics import alpha_error, boundary_f, iou
from evaluation.temporal_metrics import warp_error
from media.clip import evenly_spaced
from rendering.atlas_view import atlas_uv
from rendering.blending import apply_edits
from rendering.frame_store import FrameStore
from rendering.frames import VISIBLE, Floats, Frame
from rendering.inverse import locate_uv
from rendering.trained_run import TrainedRun
from scenes.scene import Scene

MARKS = 200  # marks carried per frame that they are put on
MARKED_FRAMES = 3  # frames on which marks are put: at a quarter, half and three quarters of the clip
TARGETS = 8  # frames that each mark is looked for in
LARGEST_STEP_PX = 1.0  # of a mark from the pixel with the nearest uv, along each axis
GREY = 0.5
LONG_RANGE = 10  # frames


def opacity_figures(store: FrameStore, scene: Scene) -> dict[str, float]:
    """J, F and soft error of the foreground's opacity against the exact one, mean over the frames."""
    figures: dict[str, list[float]] = {"iou": [], "boundary_f": [], "alpha_error": []}
    for frame in store.frames():
        truth = 1 - np.prod(1 - scene.frame(frame.t).alpha, axis=0)
        figures["iou"].append(iou(frame.coverage > VISIBLE, truth > VISIBLE))
        figures["boundary_f"].append(boundary_f(frame.coverage > VISIBLE, truth > VISIBLE))
        figures["alpha_error"].append(alpha_error(frame.coverage, truth))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def marked_frames(count: int) -> list[int]:
    """The frames on which marks and patterns are painted."""
    return sorted(
        {min(round(count * share), count - 1) for share in np.arange(1, MARKED_FRAMES + 1) / (MARKED_FRAMES + 1)}
    )


def placement_errors(run: TrainedRun, store: FrameStore, scene: Scene, seed: int = 0) -> Floats:
    """Distances in pixels between carried marks and the truth.

    A mark is put at a random pixel, goes through the layer that the pixel shows most of, as an edit would, and is
    looked for in frames all over the clip wherever the marked point is truly visible.
    """
    rng, errors = np.random.default_rng(seed), []
    targets = [(t, atlas_uv(run.model, store.frame(t)).numpy()) for t in evenly_spaced(len(run.clip), TARGETS)]
    for t in marked_frames(len(run.clip)):
        frame = store.frame(t)
        places, layers = atlas_uv(run.model, frame).numpy(), frame.visibility.argmax(0)
        marks = np.stack((rng.integers(0, scene.width, MARKS), rng.integers(0, scene.height, MARKS)), axis=1)
        x, y = marks.T
        true_layer = scene.front_layer(scene.grid(), t)[y, x]
        for other, fields in targets:
            if other == t:
                continue
            ends = scene.move_points(marks.astype(float), true_layer, t, other)
            seen = scene.is_visible(ends[None], true_layer[None], other)[0]
            for layer, field in enumerate(fields):
                chosen = seen & (layers[y, x] == layer)
                if chosen.any():
                    found, _ = locate_uv(places[layer][y[chosen], x[chosen]], field, LARGEST_STEP_PX)
                    errors.append(np.linalg.norm(found - ends[chosen], axis=1))
    return np.concatenate(errors)


def pattern(points: Floats) -> Floats:
    """Paint (..., 3) in [0, 1] at frame positions (..., 2): smooth waves, told apart everywhere."""
    x, y = points[..., 0], points[..., 1]
    waves = (np.sin(x / 9), np.sin(y / 8), np.sin((x + y) / 13))
    return np.stack([0.5 + 0.4 * wave for wave in waves], axis=-1)


def round_trips(run: TrainedRun, store: FrameStore, scene: Scene) -> Iterator[float]:
    """PSNR of a pattern painted on one frame and carried to another, against the pattern warped by the truth.

    Only where the other frame truly shows what the painted one showed; the paint lies over grey in both.
    """
    background = run.model.layers.background.index
    for t in marked_frames(len(run.clip)):
        paint = np.dstack((pattern(scene.grid()), np.ones((scene.height, scene.width)))).astype(np.float32)
        edits = splat_frame(run.model, store.frame(t), paint, list(range(background + 1)))
        for other in evenly_spaced(len(run.clip), TARGETS):
            points, visible = scene.grid(), scene.front_layer(scene.grid(), other)
            origins = scene.move_points(points, visible, other, t)
            seen = scene.is_visible(origins, visible, t)
            if other == t or not seen.any():
                continue
            grey = np.full((scene.height, scene.width, 3), GREY, np.float32)
            edited = apply_edits(grey, visible_edits(run, store.frame(other), edits))
            yield psnr(edited[seen], pattern(origins[seen]))


def steadiness(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """Warp error of a pattern painted on the middle frame, between neighbours and over LONG_RANGE frames."""
    background, middle = run.model.layers.background.index, len(run.clip) // 2
    paint = np.dstack((pattern(scene.grid()), np.ones((scene.height, scene.width)))).astype(np.float32)
    edits = splat_frame(run.model, store.frame(middle), paint, list(range(background + 1)))

    def edited(frame: Frame) -> Floats:
        return apply_edits(
            run.clip.frame(frame.t).astype(np.float32) / 255, visible_edits(run, frame, edits), frame.light
        )

    figures = {}
    for name, step in (("warp_error_short", 1), ("warp_error_long", LONG_RANGE)):
        errors = []
        for t in evenly_spaced(len(run.clip), TARGETS):
            if t + step < len(run.clip):
                flow, visible = scene.flow(t, t + step)
                errors.append(warp_error(edited(store.frame(t)), edited(store.frame(t + step)), flow, visible))
        known = [error for error in errors if error is not None]
        if known:
            figures[name] = float(np.mean(known))
    return figures


def measure_against_scene(run: TrainedRun, store: FrameStore, scene: Scene) -> dict[str, float]:
    """All figures that need the scene's truth. Raises ValueError if the run was trained at another size."""
    if (run.clip.width, run.clip.height, len(run.clip)) != (scene.width, scene.height, scene.frames):
        raise ValueError(
            f"the run is {run.clip.width} x {run.clip.height} x {len(run.clip)}, "
            f"the scene {scene.width} x {scene.height} x {scene.frames}"
        )
    figures = opacity_figures(store, scene) | placement_summary(placement_errors(run, store, scene))
    trips = [trip for trip in round_trips(run, store, scene) if math.isfinite(trip)]
    if trips:
        figures["round_trip_psnr"] = float(np.mean(trips))
    return figures | steadiness(run, store, scene)
