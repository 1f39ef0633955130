"""The compiled kernels as a run needs them: there, whole, and their cost known."""
