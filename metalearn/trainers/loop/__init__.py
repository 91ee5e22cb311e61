"""The loop that every trainer assembles: step, validate, log, save, resume, stop."""
