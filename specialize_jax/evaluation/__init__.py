"""Accuracy with its uncertainty, and the choice of a checkpoint by it."""
