"""Gradients through training runs and scores of examples, beside other libraries."""
