"""Predictive distributions, Laplace approximations, weight averages and consolidation."""
