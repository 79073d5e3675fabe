"""Point tracks: the position of a point of a layer in every frame, by the mapping, and whether it is visible there."""

from dataclasses import dataclass

import numpy as np

from command_line import UserError
from rendering.frames import VISIBLE, Floats, Frame, render_frame, render_frames
from rendering.inverse import locate_uv
from rendering.resampling import sample_field
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

    Positions are in pixels of native size. Returns the name of the layer that the pixel shows most, and the track.
    Raises UserError for a pixel outside the clip.
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
    start_frame = render_frame(run.model, clip, t, run.full_range, with_colors=False)
    layer = int(np.argmax([sample_at(visibility, start) for visibility in start_frame.visibility]))
    target_uv = sample_at(start_frame.uv[layer], start)
    track = []
    for frame in render_frames(run.model, clip, run.full_range, with_colors=False):
        position, is_visible = locate_in_frame(frame, layer, target_uv)
        native = (position + 0.5) * scale - 0.5
        track.append(TrackPoint(frame.t, float(native[0]), float(native[1]), is_visible))
    return run.model.layers[layer].name, track


def sample_at(field: Floats, position: Floats) -> Floats:
    """Sample a field (H, W) or (H, W, C) bilinearly at one position (x, y) in pixels."""
    return sample_field(field, position.astype(np.float32)[None, None])[0, 0]


def locate_in_frame(frame: Frame, layer: int, target_uv: Floats) -> tuple[Floats, bool]:
    """Return the position (x, y) in a frame at which a layer has the target uv (2,), and whether it is visible there.

    The position is in pixels of working size. Beyond the frame the mapping is extrapolated linearly.
    """
    positions, is_found = locate_uv(target_uv[None], frame.uv[layer])
    is_visible = bool(is_found[0]) and bool(sample_at(frame.visibility[layer], positions[0]) > VISIBLE)
    return positions[0], is_visible


def track_csv(track: list[TrackPoint]) -> str:
    """Return a track as CSV text with the columns frame, x, y and visible."""
    rows = [f"{point.t},{point.x:.3f},{point.y:.3f},{int(point.is_visible)}" for point in track]
    return "\n".join(["frame,x,y,visible", *rows]) + "\n"
