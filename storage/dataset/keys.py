"""The grammar of a row's key, which says what the row is about; nothing else builds or reads one.

    patient:P             a patient: accepted, or with a reserved split
    refused:P             a patient's pair, refused; one a cohort, as the next two
    series:P:S:R          a series S (digest of its UID) in the role R, refused; P may be empty
    file:F                files of a folder (digest of its path) that are nobody's, refused

A refusal is over when a delivery holds its subject again and says nothing against it. The subject
is the key, but of a series without patient and role: what mends it may change both.
"""

_SERIES = "series:"


def patient(name: str) -> str:
    """Of an accepted or reserved patient."""
    return f"patient:{name}"


def refused_patient(name: str) -> str:
    """Of a patient whose pair is refused."""
    return f"refused:{name}"


def series(uid: str, role: str, of: str | None) -> str:
    """Of a refused series, with the digest of its UID, in a role, of a patient if it has one."""
    return f"{_SERIES}{of or ''}:{uid}:{role}"


def folder(digest: str) -> str:
    """Of unreadable files of a folder."""
    return f"file:{digest}"


def series_subject(uid: str) -> str:
    """The subject of all refusals of a series."""
    return f"{_SERIES}{uid}"


def subject(key: str) -> str:
    """What a refusal is of."""
    if not key.startswith(_SERIES):
        return key
    _, uid, _ = key.rsplit(":", 2)
    return series_subject(uid)
