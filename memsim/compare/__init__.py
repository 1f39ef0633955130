"""Schedules compared by what they learn, for the same steps, forward passes, bytes and seconds."""
