"""Errors that a user can mend, each one line: what, what was found and expected, what to do.

`StorageError` is the base of this package, as `HqinetError` is of the science: a command prints
it and ends. Nothing else is caught at the top.
"""


class StorageError(Exception):
    """Something that the user can mend."""


class StoreError(StorageError):
    """A disk, network or object store that does not do what was asked: full, shut, not there."""


class DatasetError(StorageError):
    """The dataset, or a commit or patient of it, is not there or not whole."""


class SourceError(StorageError):
    """A delivery that cannot be read at all."""


class UnusableSourceError(SourceError):
    """A delivery of which nothing can be made, today or tomorrow: no CT image, or a damaged zip."""


class CohortFileError(StorageError):
    """A cohort file (TOML) that says something impossible."""


class PseudonymError(StorageError):
    """Pseudonyms are wanted, and there is no secret to make them with."""


class SplitError(StorageError):
    """A split that cannot be fixed by hand as it was asked."""


class RegistryError(StorageError):
    """Something asked of the registry that is not there."""


class UnavailableError(RegistryError):
    """A registry that does not do what was asked now: its server is away, or in trouble."""


class CollectionError(StorageError):
    """A public collection that does not hold what was asked for."""


class Conflict(StorageError):  # noqa: N818 - the loser of a race is no error until it gives up
    """Another writer committed first: read again, decide again, try again."""
