"""Benchmarks: quality within a time budget, accuracy of flow and alignment, and speed."""
