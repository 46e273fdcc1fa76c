"""Estimators of a step's time, all of one protocol."""
