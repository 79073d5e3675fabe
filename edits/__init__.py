"""Edits: how paint is read, moved between frames and atlases, sampled and laid over a frame."""
