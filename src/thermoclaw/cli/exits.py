"""What the process's exit status says."""

OK, FOUND, WRONG, INTERRUPTED = 0, 1, 2, 130

MEANINGS = {
    OK: "done, and nothing to act on",
    FOUND: "findings to act on, or a check that failed",
    WRONG: "wrong use, or something that cannot be read or written",
    INTERRUPTED: "interrupted",
}
