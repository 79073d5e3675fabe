"""The fast representation of a clip: explicit grids that start from a closed-form alignment of the layers."""
