"""What surrounds the steps of a run: its clock, its log, and how it is stopped."""
