"""Whether the running service can still answer, rightly and in time."""
