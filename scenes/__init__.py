"""Synthetic clips with exact ground truth, rendered from photographs that scikit-image ships."""
