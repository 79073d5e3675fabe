"""A point of a layer followed through the clip: where the mapping puts it in every frame, and whether it is seen."""

from dataclasses import dataclass

import numpy as np

from command_line import UserError
from rendering.frames import VISIBLE, Floats, Frame, render_frame, render_frames
from rendering.inverse import invert_matrices, sample_bilinear
from rendering.trained_run import TrainedRun

NEWTON_STEPS = 5
FOUND_PX = 0.5  # a place counts as found where the mapping comes this near


@dataclass(frozen=True)
class TrackPoint:
    """A point in a frame, in pixels of the frames as they are, upper left pixel center (0, 0)."""

    t: int
    x: float
    y: float
    is_visible: bool


def track_point(run: TrainedRun, x: float, y: float, t: int) -> tuple[str, list[TrackPoint]]:
    """The layer that pixel (x, y) of frame t shows, and the point's path through all frames.

    Pixels of the frames as they are. Raises UserError for a pixel outside the clip.
    """
    clip = run.clip
    width, height = clip.native_size
    if not (0 <= t < len(clip) and 0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise UserError(
            f"--track {x:g},{y:g},{t}: outside the clip of {len(clip)} frames (0 to {len(clip) - 1}) of "
            f"{width} x {height}"
        )
    scale = np.array([width / clip.width, height / clip.height])
    start = (np.array([x, y]) + 0.5) / scale - 0.5
    frame = render_frame(run.model, clip, t, run.full_range, with_colors=False)
    layer = int(np.argmax([sample_at(share, start) for share in frame.visibility]))
    wanted = sample_at(frame.uv[layer], start)
    path = []
    for each in render_frames(run.model, clip, run.full_range, with_colors=False):
        position, is_visible = locate_in_frame(each, layer, wanted)
        native = (position + 0.5) * scale - 0.5
        path.append(TrackPoint(each.t, float(native[0]), float(native[1]), is_visible))
    return run.model.layers[layer].name, path


def sample_at(field: Floats, position: np.ndarray) -> np.ndarray:
    """A field (H, W[, C]) at a position (x, y) in pixels, linear."""
    return sample_bilinear(field, position.astype(np.float32)[None, None])[0, 0]


def locate_in_frame(frame: Frame, layer: int, wanted: np.ndarray) -> tuple[np.ndarray, bool]:
    """The position (x, y) in a frame, working pixels, whose uv is wanted (2,); and whether it is seen there.

    Beyond the frame the mapping is continued by its slope at the border.
    """
    uv = frame.uv[layer]
    rows, columns = np.unravel_index(np.square(uv - wanted).sum(-1).argmin(), uv.shape[:2])
    position = np.array([columns, rows], float)
    inverse = invert_matrices(np.stack([np.gradient(uv, axis=1), np.gradient(uv, axis=0)], axis=-1))
    limits = np.array([uv.shape[1] - 1, uv.shape[0] - 1])
    for _ in range(NEWTON_STEPS):
        inside = position.clip(0, limits)
        slope = sample_at(inverse, inside).reshape(2, 2)
        position = inside - slope @ (sample_at(uv, inside) - wanted)
    inside = position.clip(0, limits)
    missed = sample_at(inverse, inside).reshape(2, 2) @ (sample_at(uv, inside) - wanted)
    is_found = max(np.abs(position - inside).max(), np.abs(missed).max()) < FOUND_PX
    is_visible = is_found and bool(sample_at(frame.visibility[layer], inside) > VISIBLE)
    return position, is_visible


def track_csv(path: list[TrackPoint]) -> str:
    """The path as a table."""
    rows = [f"{point.t},{point.x:.3f},{point.y:.3f},{int(point.is_visible)}" for point in path]
    return "\n".join(["frame,x,y,visible", *rows]) + "\n"
