"""Time to quality: the PSNR of a run while it trains, measured with its clock stopped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.image_metrics import psnr
from media.clip import evenly_spaced_indices
from rendering.frames import render_frame

if TYPE_CHECKING:
    from training.loop import Trainer

SHARES = (0.95, 0.99)  # Shares of the last PSNR of the training, in dB, whose time is measured.
MEASURED_FRAMES = 5  # Frames whose mean PSNR is measured, evenly spread over the clip.
INTERVAL_S = 3.0  # Seconds of training between two measurements.


class QualityCurve:
    """The PSNR of a run over its seconds of training, without looks: points (seconds, PSNR in dB)."""

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer
        self.points: list[tuple[float, float]] = []

    def measure_if_due(self) -> None:
        """Measure the PSNR every INTERVAL_S, and after the last step; called after each step of training."""
        is_due = not self.points or self.trainer.stopwatch.seconds >= self.points[-1][0] + INTERVAL_S
        if is_due or self.trainer.is_finished:
            self.measure()

    def measure(self) -> float:
        """Add a point, and return its PSNR in dB: the mean over some frames of the model as it is."""
        clip, errors = self.trainer.clip, []
        with self.trainer.stopwatch.pause():
            for t in evenly_spaced_indices(len(clip), MEASURED_FRAMES):
                frame = render_frame(self.trainer.model, clip, t, full_range=True)
                errors.append(psnr(frame.rgb, clip.frame(t).astype(np.float32) / 255))
        self.points.append((self.trainer.stopwatch.seconds, float(np.mean(errors))))
        return self.points[-1][1]


def time_to_quality(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the seconds after which a run had reached each of SHARES of its last PSNR, by name. points: of a curve.

    Nothing is returned for a run without a step.
    """
    if not points:
        return {}
    last = points[-1][1]
    return {
        f"seconds_to_{100 * share:.0f}": next(seconds for seconds, quality in points if quality >= share * last)
        for share in SHARES
    }


def time_to_psnr(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Return the seconds after which a run had reached a PSNR in dB; None if it never did. points: of a curve."""
    return next((seconds for seconds, quality in points if quality >= goal), None)
