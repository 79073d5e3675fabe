"""Training: the loop, the learner of the networks, sampling, the log, stopping, and earlier runs."""
