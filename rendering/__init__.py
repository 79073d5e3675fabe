"""Rendering of a trained run: frames, views of the atlas, resampling, blending of edits."""
