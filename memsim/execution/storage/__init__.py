"""Where the values of a program are: in arenas, on mapped files, on the scratch file."""
