"""Labelled data sets: one array interface for all sources."""
