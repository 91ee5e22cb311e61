"""One file for each command: the function that it calls, and the check of its settings."""
