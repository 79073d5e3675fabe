"""Reduced sizes at which frames are processed."""


def fit_size(size: tuple[int, int], max_long_edge: int) -> tuple[int, int]:
    """Return (width, height) with the same aspect and no side longer than max_long_edge; frames are never enlarged."""
    scale = min(1.0, max_long_edge / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
