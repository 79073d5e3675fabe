"""Closed-form knowledge of a clip: how each layer moves, and which pixels belong to the object."""
