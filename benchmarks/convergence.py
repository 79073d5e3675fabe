"""Time to quality: when a run first reached a share of its last PSNR, read from its log.

The PSNR in the log is that of each batch, at the resolution that the training has then. Grids begin with reduced
frames, which are easier to match, so early times are a little too good."""

import math
from collections.abc import Sequence

import numpy as np

SHARES = (0.95, 0.99)  # Shares of the last PSNR, in dB, whose time is measured.
AVERAGED_LINES = 5  # Lines of the log over which the error is averaged, because each is of one batch of frames.


def time_to_quality(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the seconds after which a run had reached each of SHARES of its last PSNR, by name.

    rows: lines of the log, see `training.log.Log`. Returns nothing if there are too few lines.
    """
    curve = average_psnr(rows)
    if not curve:
        return {}
    last = curve[-1][1]
    return {f"seconds_to_{100 * share:.0f}": first_time(curve, share * last) or curve[-1][0] for share in SHARES}


def time_to_psnr(rows: Sequence[dict[str, float]], psnr: float) -> float | None:
    """Return the seconds after which a run had reached a PSNR in dB, from its log; None if it never did."""
    return first_time(average_psnr(rows), psnr)


def average_psnr(rows: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    """Return (seconds, PSNR in dB) over the lines of a log; each PSNR is that of the mean error of AVERAGED_LINES."""
    lines = [row for row in rows if "psnr_of_batch" in row]
    if len(lines) < AVERAGED_LINES:
        return []
    errors = [10 ** (-row["psnr_of_batch"] / 10) for row in lines]
    averages = np.convolve(errors, np.full(AVERAGED_LINES, 1 / AVERAGED_LINES), mode="valid")
    middle = AVERAGED_LINES // 2  # An average is of the time of its middle line.
    return [
        (lines[number + middle]["seconds"], -10 * math.log10(error)) for number, error in enumerate(averages.tolist())
    ]


def first_time(curve: Sequence[tuple[float, float]], psnr: float) -> float | None:
    """Return the first time of a curve of (seconds, PSNR) at which it is at least this high; None without one."""
    return next((seconds for seconds, quality in curve if quality >= psnr), None)
