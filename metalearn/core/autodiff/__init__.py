"""Derivatives of functions over parameter trees, checked against one another."""
