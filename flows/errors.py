"""The base of this package's errors that a user can mend."""


class FlowError(Exception):
    """One line: what is wrong, the value found, the value expected, what to do."""
