"""The search: the fastest schedule that fits a budget, by exact peaks and a device's rates."""
