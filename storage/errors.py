"""Errors whose message is one line for the person at the keyboard: what, where, and what to do."""


class StorageError(Exception):
    """Something that the user can mend: a wrong path, a full disk, a damaged store."""


class DatasetError(StorageError):
    """The dataset, or a commit or patient of it, is not there or not whole."""


class SourceError(StorageError):
    """A delivery that cannot be read at all."""


class CohortFileError(StorageError):
    """A cohort file (TOML) that says something impossible."""


class Conflict(StorageError):  # noqa: N818 - the loser of a race is no error until it gives up
    """Another writer committed first: read again, decide again, try again."""
