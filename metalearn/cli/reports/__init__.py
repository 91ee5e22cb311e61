"""A run on one page: what its folder tells, and how that is shown."""
