"""Time to quality: when a run first reached a share of its last PSNR, read from its log."""

import math
from collections.abc import Sequence

import numpy as np

SHARES = (0.95, 0.99)  # Shares of the last PSNR, in dB, whose time is measured.
AVERAGED_LINES = 5  # Lines of the log over which the error is averaged, because each is of one batch of frames.


def time_to_quality(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the seconds after which a run had reached each of SHARES of its last PSNR, by name.

    rows: lines of the log, see `training.log.Log`. Returns nothing if there are too few lines.
    """
    lines = [row for row in rows if "psnr_of_batch" in row]
    if len(lines) < AVERAGED_LINES:
        return {}
    errors = np.array([10 ** (-row["psnr_of_batch"] / 10) for row in lines])
    averages = np.convolve(errors, np.full(AVERAGED_LINES, 1 / AVERAGED_LINES), mode="valid")
    qualities = [-10 * math.log10(error) for error in averages]
    middle = AVERAGED_LINES // 2  # An average is of the time of its middle line.
    return {
        f"seconds_to_{100 * share:.0f}": next(
            lines[number + middle]["seconds"]
            for number, quality in enumerate(qualities)
            if quality >= share * qualities[-1]
        )
        for share in SHARES
    }
