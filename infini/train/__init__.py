"""Training: the model, the step and the loop around it."""
