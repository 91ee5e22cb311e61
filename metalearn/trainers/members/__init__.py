"""M networks trained as one: what is kept of each, and its own learning rate."""
