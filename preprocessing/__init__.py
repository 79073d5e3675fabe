"""The methods behind the preprocess scripts: extract frames, compute optical flow and find masks.

A script imports a method only when it is used, because some methods load large libraries.
"""
