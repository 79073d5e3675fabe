"""A point of a layer followed through the clip: where the mapping puts it in every frame, and whether it is seen."""

from dataclasses import dataclass

import numpy as np

from command_line import UserError
from rendering.frames import VISIBLE, Floats, Frame, render_frame, render_frames
from rendering.inverse import locate_uv, sample_bilinear
from rendering.trained_run import TrainedRun


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
    """A field (H, W[, C]) at a position (x, y) in pixels, bilinear."""
    return sample_bilinear(field, position.astype(np.float32)[None, None])[0, 0]


def locate_in_frame(frame: Frame, layer: int, wanted: np.ndarray) -> tuple[np.ndarray, bool]:
    """The position (x, y) in a frame, working pixels, whose uv is wanted (2,); and whether it is visible there.

    Beyond the frame the mapping is continued by its slope at the border.
    """
    positions, found = locate_uv(wanted[None], frame.uv[layer])
    return positions[0], bool(found[0]) and bool(sample_at(frame.visibility[layer], positions[0]) > VISIBLE)


def track_csv(path: list[TrackPoint]) -> str:
    """The path as a table."""
    rows = [f"{point.t},{point.x:.3f},{point.y:.3f},{int(point.is_visible)}" for point in path]
    return "\n".join(["frame,x,y,visible", *rows]) + "\n"
