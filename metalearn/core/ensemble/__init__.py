"""M members as one stack of parameters."""
