"""Clips with exact truth, made by the project from photographs that scikit-image ships."""
