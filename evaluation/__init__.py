"""Evaluation of a run: metrics as pure functions, and reports that show them."""
