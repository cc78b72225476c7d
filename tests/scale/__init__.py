"""A package, so that what it fills is emptied when its last test has run."""
