"""How good a mapping is: where it carries a mark, how rigid it is, how much of its atlas is used."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

THRESHOLDS_PX = (1, 2, 4, 8, 16)  # as TAP-Vid (Doersch et al. 2022)


def placement_summary(errors_px: Floats) -> dict[str, float]:
    """Edit placement error: mean distance to the truth in pixels, and shares within 1 to 16 (TAP-Vid's delta)."""
    figures = {"placement_px": float(errors_px.mean())}
    return figures | {f"placement_within_{limit}": float((errors_px < limit).mean()) for limit in THRESHOLDS_PX}


def singular_values(field: Floats, px_per_uv: float) -> tuple[Floats, Floats]:
    """Singular values (H - 1, W - 1) of a mapping's derivative, larger and smaller, for places (H, W, 2)."""
    across = (field[1:, 1:] - field[1:, :-1]) * px_per_uv
    down = (field[1:, 1:] - field[:-1, 1:]) * px_per_uv
    squares = np.square(across).sum(-1) + np.square(down).sum(-1)
    determinant = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
    spread = np.sqrt(np.maximum(np.square(squares) - 4 * np.square(determinant), 0))
    return np.sqrt((squares + spread) / 2), np.sqrt(np.maximum(squares - spread, 0) / 2)


def rigidity_summary(fields: Iterable[tuple[Floats, NDArray[np.bool_]]], px_per_uv: float) -> dict[str, float]:
    """Local scale and shear of a mapping over the pixels that show its layer.

    fields: places (H, W, 2) of each frame, and where the layer is visible (H, W). `scale_spread` is the standard
    deviation of the logarithm of the local scale (0: one scale everywhere), `shear` the mean logarithm of the ratio of
    the two singular values (0: nowhere sheared). NaN, hence left out by callers, if the layer is never seen.
    """
    scales, ratios = [], []
    for field, visible in fields:
        larger, smaller = singular_values(field, px_per_uv)
        chosen = visible[1:, 1:]
        larger, smaller = np.log(np.maximum(larger[chosen], 1e-9)), np.log(np.maximum(smaller[chosen], 1e-9))
        scales.append((larger + smaller) / 2)
        ratios.append(larger - smaller)
    if not scales or not sum(map(len, scales)):
        return {"scale_spread": float("nan"), "shear": float("nan")}
    return {"scale_spread": float(np.concatenate(scales).std()), "shear": float(np.concatenate(ratios).mean())}
