"""Point tracks: the position of a point of a layer in every frame, by the mapping, and whether it is visible there."""

from dataclasses import dataclass

import numpy as np

from command_line import UserError
from rendering.frames import render_frame, render_frames
from rendering.point_tracks import follow_points, pick_in_frame
from rendering.trained_run import TrainedRun


@dataclass(frozen=True)
class TrackPoint:
    """A tracked point in one frame, in pixels of native size; the center of the upper left pixel is (0, 0)."""

    t: int
    x: float
    y: float
    is_visible: bool


def track_point(run: TrainedRun, x: float, y: float, t: int) -> tuple[str, list[TrackPoint]]:
    """Track the point at pixel (x, y) of frame t through all frames.

    Positions are in pixels of native size. Returns the name of the layer that the point is on (see `pick_in_frame`),
    and the track. Raises UserError for a pixel outside the clip.
    """
    clip = run.clip
    width, height = clip.native_size
    if not (0 <= t < len(clip) and 0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise UserError(
            f"--track {x:g},{y:g},{t}: outside the clip of {len(clip)} frames (0 to {len(clip) - 1}) of "
            f"{width} x {height}"
        )
    start = clip.from_native_px(np.array([[x, y]]))
    start_frame = render_frame(run.model, clip, t, run.full_range, with_colors=False)
    points = pick_in_frame(start_frame, start)
    frames = render_frames(run.model, clip, run.full_range, with_colors=False)
    positions, is_visible = follow_points(frames, points)
    native = clip.to_native_px(positions[0])
    track = [
        TrackPoint(number, float(px), float(py), bool(seen))
        for number, ((px, py), seen) in enumerate(zip(native, is_visible[0], strict=True))
    ]
    return run.model.layers[int(points.layers[0])].name, track


def track_csv(track: list[TrackPoint]) -> str:
    """Return a track as CSV text with the columns frame, x, y and visible."""
    rows = [f"{point.t},{point.x:.3f},{point.y:.3f},{int(point.is_visible)}" for point in track]
    return "\n".join(["frame,x,y,visible", *rows]) + "\n"
