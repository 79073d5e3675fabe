"""Metrics of a mapping: how far off an edit is placed, and how rigid the mapping is."""

from collections.abc import Iterable

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
    squared_norm = np.square(dx).sum(-1) + np.square(dy).sum(-1)
    determinant = dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]
    root = np.sqrt(np.maximum(np.square(squared_norm) - 4 * np.square(determinant), 0))
    return np.sqrt((squared_norm + root) / 2), np.sqrt(np.maximum(squared_norm - root, 0) / 2)


def rigidity_summary(fields: Iterable[tuple[Floats, NDArray[np.bool_]]], px_per_uv: float) -> dict[str, float]:
    """Return the spread of the scale and the shear of a mapping over the pixels that show its layer.

    fields: for each frame uv (H, W, 2), and whether the layer is visible (H, W). `scale_spread` is the standard
    deviation of the logarithm of the local scale; it is 0 if the scale is the same everywhere. `shear` is the mean
    logarithm of the ratio of the two singular values; it is 0 without shear. Both are NaN if the layer is never
    visible; callers leave them out.
    """
    log_scales: list[Floats] = []
    log_ratios: list[Floats] = []
    for uv, visible in fields:
        larger, smaller = singular_values(uv, px_per_uv)
        chosen = visible[1:, 1:]
        larger, smaller = np.log(np.maximum(larger[chosen], 1e-9)), np.log(np.maximum(smaller[chosen], 1e-9))
        log_scales.append((larger + smaller) / 2)
        log_ratios.append(larger - smaller)
    if not log_scales or not sum(map(len, log_scales)):
        return {"scale_spread": float("nan"), "shear": float("nan")}
    scale_spread, shear = np.concatenate(log_scales).std(), np.concatenate(log_ratios).mean()
    return {"scale_spread": float(scale_spread), "shear": float(shear)}
