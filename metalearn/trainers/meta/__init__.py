"""Meta-learning: learners that adapt to tasks, how they are trained, scored and looked at."""
