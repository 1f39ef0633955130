"""Measuring kernels and steps against the host's own roof and against torch, in one call."""
