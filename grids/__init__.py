"""The fast representation: explicit grids that start from a closed-form alignment."""
