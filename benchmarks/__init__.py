"""What is measured rather than tested: quality against time, and speed."""
