"""Training: the loop, the interface of a learner, the networks' learner, sampling, the log, stopping, earlier runs."""
