"""What is measured and shown of a run: metrics as pure functions, and reports."""
