"""The program that everything reads: values, nodes, ops, derived backward, serialisation."""
