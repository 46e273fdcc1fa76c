"""Fitting: loss and gradient, the convex start, the softplus refinement, the search over settings."""
