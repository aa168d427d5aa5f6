"""What is wrong with what a user gave, in one sentence. No torch."""


class DataError(ValueError):
    """A data set cannot be used: what is wrong with it, and what to do."""


class RunError(ValueError):
    """A run cannot begin or go on: why, and what to do."""
