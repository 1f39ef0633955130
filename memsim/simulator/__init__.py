"""A step on a device that is not here: seconds, pages, heat, and the verdict of its memory limit."""
