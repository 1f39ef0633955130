"""Execution of each family of ops."""
