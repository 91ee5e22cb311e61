"""A module as a pure function of its parameters."""
