"""A grid of configurations, planned, simulated or really run, on this machine or on a cluster."""
