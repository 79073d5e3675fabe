"""Editing: requests and their checks, edits of atlases and frames, edited videos, transfer to another run."""
