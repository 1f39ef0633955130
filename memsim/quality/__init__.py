"""What quantisation costs in loss, measured on a text, and rounding that a text makes better."""
