"""How good a mapping is: where it carries a mark, how rigid it is, how much of its atlas is used."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.floating]

THRESHOLDS_PX = (1, 2, 4, 8, 16)  # as TAP-Vid (Doersch et al. 2022)
LARGEST_CORRECTION_PX = 1.0  # of the nearest pixel's position, along each axis


def locate_uv(uv: Floats, field: Floats) -> Floats:
    """Where places uv (N, 2) lie in a frame whose pixels have the places `field` (H, W, 2): positions (N, 2) (x, y).

    The pixel of the nearest place, corrected by the local derivative of the field to a fraction of a pixel.
    """
    height, width = field.shape[:2]
    _, nearest = cKDTree(field.reshape(-1, 2)).query(uv)
    y, x = np.divmod(nearest, width)
    left, right = np.clip(x - 1, 0, width - 1), np.clip(x + 1, 0, width - 1)
    above, below = np.clip(y - 1, 0, height - 1), np.clip(y + 1, 0, height - 1)
    along_x = (field[y, right] - field[y, left]) / np.maximum(right - left, 1)[:, None]
    along_y = (field[below, x] - field[above, x]) / np.maximum(below - above, 1)[:, None]
    missing = uv - field[y, x]
    determinant = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    determinant = np.where(np.abs(determinant) < 1e-12, np.inf, determinant)
    step_x = (missing[:, 0] * along_y[:, 1] - missing[:, 1] * along_y[:, 0]) / determinant
    step_y = (along_x[:, 0] * missing[:, 1] - along_x[:, 1] * missing[:, 0]) / determinant
    steps = np.clip(np.stack((step_x, step_y), axis=1), -LARGEST_CORRECTION_PX, LARGEST_CORRECTION_PX)
    return np.stack((x, y), axis=1) + steps


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
