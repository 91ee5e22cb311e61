"""Runs side by side: found in folders, put into rows, written as a table and a figure."""
