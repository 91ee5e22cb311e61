"""Gradients through whole training runs."""
