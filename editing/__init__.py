"""Edits: what is asked for, how paint is carried through a video, and how it is tied to an atlas."""
