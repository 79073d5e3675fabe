"""Metrics of a mapping: how far off an edit is placed, and how rigid the mapping is."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

THRESHOLDS_PX = (1, 2, 4, 8, 16)  # Limits of the placement error, as in TAP-Vid (Doersch et al. 2022).


def placement_summary(errors_px: Floats) -> dict[str, float]:
    """Return the mean placement error in pixels, and the fractions below 1, 2, 4, 8 and 16 pixels (delta of TAP-Vid).

    errors_px: distances of tracked marks from the truth, any shape.
    """
    metrics = {"placement_px": float(errors_px.mean())}
    return metrics | {f"placement_within_{limit}": float((errors_px < limit).mean()) for limit in THRESHOLDS_PX}


def singular_values(uv: Floats, px_per_uv: float) -> tuple[Floats, Floats]:
    """Return the larger and the smaller singular value of the derivative of a mapping, (H - 1, W - 1) each.

    uv: (H, W, 2).
    """
    dx = (uv[1:, 1:] - uv[1:, :-1]) * px_per_uv
    dy = (uv[1:, 1:] - uv[:-1, 1:]) * px_per_uv
    squared_norm = np.einsum("yxc,yxc->yx", dx, dx) + np.einsum("yxc,yxc->yx", dy, dy)
    determinant = dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
    root = np.sqrt(np.maximum(np.square(squared_norm) - 4 * np.square(determinant), 0))
    return np.sqrt((squared_norm + root) / 2), np.sqrt(np.maximum(squared_norm - root, 0) / 2)


@dataclass
class RigiditySums:
    """Sums over pixels that describe how rigid a mapping is, in float64."""

    count: int  # number of pixels
    log_scale: float  # sum of the logarithm of the local scale
    squared_log_scale: float  # sum of its square
    log_ratio: float  # sum of the logarithm of the ratio of the two singular values

    @classmethod
    def of_mapping(cls, uv: Floats, visible: NDArray[np.bool_], px_per_uv: float) -> "RigiditySums":
        """Return the sums over the pixels (H, W) of one frame that show a layer with the mapping uv (H, W, 2)."""
        chosen = visible[1:, 1:]
        larger, smaller = (
            np.log(np.maximum(values[chosen], 1e-9), dtype=np.float64) for values in singular_values(uv, px_per_uv)
        )
        log_scale = (larger + smaller) / 2
        return cls(log_scale.size, log_scale.sum(), np.square(log_scale).sum(), (larger - smaller).sum())

    def __add__(self, other: "RigiditySums") -> "RigiditySums":
        """Return the sums over the pixels of both."""
        return RigiditySums(
            self.count + other.count,
            self.log_scale + other.log_scale,
            self.squared_log_scale + other.squared_log_scale,
            self.log_ratio + other.log_ratio,
        )


def summarize_rigidity(frames: Iterable[RigiditySums]) -> dict[str, float]:
    """Return the spread of the scale and the shear of a mapping over all frames.

    `scale_spread` is the standard deviation of the logarithm of the local scale; it is 0 if the scale is the same
    everywhere. `shear` is the mean logarithm of the ratio of the two singular values; it is 0 without shear. Both are
    NaN if the layer is never visible; callers leave them out.
    """
    total = sum(frames, RigiditySums(0, 0.0, 0.0, 0.0))
    if not total.count:
        return {"scale_spread": float("nan"), "shear": float("nan")}
    mean = total.log_scale / total.count
    variance = max(0.0, total.squared_log_scale / total.count - mean**2)
    return {"scale_spread": variance**0.5, "shear": total.log_ratio / total.count}
