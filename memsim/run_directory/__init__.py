"""What the directory of a run holds, each kind of file read and written in one place."""
