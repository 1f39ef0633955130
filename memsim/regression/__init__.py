"""Regression of memory: stored baselines, what grew against them, and two runs side by side."""
