"""Runs made visible: what their files hold, as tables, plots, a page and a trace."""
