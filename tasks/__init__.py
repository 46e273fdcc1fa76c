"""Orchestration, where and how often: placement, processes, stores, publishing."""
