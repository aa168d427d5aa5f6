"""What the process's exit status says."""

OK, FOUND, WRONG = 0, 1, 2
