"""What a delivery of DICOM means: which series is low dose, who the patient is, which anatomy.

The defaults cover the public LDCT collections; a cohort file (TOML) describes one that they do
not. Everything here is decided from text, which stays in this module: what comes out are keys
and words of fixed vocabularies.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from storage.ingest.simulation import Share, SimulationRules
from storage.ingest.toml_files import read_model
from storage.vocabulary import Anatomy, anatomy_of, collection_anatomy


class Role(StrEnum):
    """What a series is in its cohort."""

    LOW = "low"
    FULL = "full"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


# The phantoms of `hqinet demo`, which never stand in one dataset with patients.
SYNTHETIC = "synthetic-demo"

Pattern = Annotated[str, AfterValidator(_compiles)]

# A word is bounded by anything that is no letter or digit: `_` and `-` bound words in file names.
_WORD = r"(?<![a-z0-9])(?:{})(?![a-z0-9])"
_ANONYMOUS = r"|patientid|anon|anonym|anonymous|anonymi[sz]ed|unknown|none|null|n/a|no[ _]?id|0+"


class PatientRule(BaseModel):
    """Where the patient's key comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["id", "path"] = Field(
        "id", description="`id`: PatientID, or the path where that is missing; `path`: the path."
    )
    pattern: Pattern | None = Field(
        None,
        description="Regular expression searched in PatientID or path; the key is its group "
        "`key`, or the whole match. Default: the whole PatientID; N, C or L and 3 digits in a path",
    )
    prefix: str = Field("", description="Put before every key, where IDs of two sites collide.")


class CohortRules(BaseModel):
    """One cohort file. Expressions are searched without regard to case."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(None, description="Name of the cohort; default: the folder's name.")
    low: tuple[Pattern, ...] = Field(
        (
            r"(?:low|quarter|reduced|half|simulated)[\s_-]*dose",
            r"(?<![\d.])\d{1,2}(?:\.\d+)?\s*%\s*dose",
        ),
        description="A series whose text matches one of these is low dose.",
    )
    full: tuple[Pattern, ...] = Field(
        (
            r"(?:full|routine|standard|normal|regular|high)[\s_-]*dose",
            r"(?<!\d)100\s*%\s*dose",
        ),
        description="A series whose text matches one of these is full dose.",
    )
    weak_low: tuple[Pattern, ...] = Field(
        (
            _WORD.format("low|quarter|qd|ld")
            + r"(?![\s_-]*(?:kv|kev|contrast|res|mono|energy|noise|pitch|freq))",
        ),
        description="Words that mean low dose where neither `low` nor `full` matches.",
    )
    weak_full: tuple[Pattern, ...] = Field(
        (
            _WORD.format("full|fd")
            + r"(?![\s_-]*(?:fov|field|body|range|volume|lung|chest|abd|head|spine))",
        ),
        description="Words that mean full dose where neither `low` nor `full` matches.",
    )
    ignore: tuple[Pattern, ...] = Field(
        (), description="Series whose text matches one of these are left out, whatever else."
    )
    texts: tuple[Literal["description", "folder", "file"], ...] = Field(
        ("description", "folder", "file"),
        description="Where roles are looked for; the first text with a verdict decides.",
    )
    patient: PatientRule = PatientRule()
    anatomy: Anatomy | dict[Pattern, Anatomy] | None = Field(
        None,
        description="One word for the cohort, or a table from an expression on the patient's ID "
        "to a word. Default: N, C, L and 3 digits are head, chest, abdomen; else BodyPartExamined.",
    )
    dose_fraction: Share | dict[Anatomy, Share] | None = Field(
        None, description="Dose of the low series over the full dose: one, or one an anatomy."
    )
    simulate: SimulationRules | None = Field(
        None, description="Give full-dose series without a low-dose one a simulated partner."
    )
    pseudonymise: bool = Field(
        False, description="Replace IDs and paths by keyed hashes (HQINET_PSEUDONYM_KEY)."
    )


def read_cohort_file(path: Path) -> CohortRules:
    """Read a cohort file.

    Raises:
        CohortFileError: it is not there, not TOML, or holds a key or value that is not known.
    """
    return read_model("cohort file", path, CohortRules)


def role(rules: CohortRules, path: str, description: str) -> Role | None:
    """The role of a CT image series by its texts; None where the cohort file ignores it.

    Args:
        path: of a file, below the delivery.
        description: SeriesDescription (0008,103E), empty when absent.
    """
    parts = PurePosixPath(path)
    texts: dict[str, Sequence[str]] = {
        "description": [description],
        "folder": [part.name for part in parts.parents],
        "file": [parts.name],
    }
    if any(_found(rules.ignore, text) for group in texts.values() for text in group):
        return None
    for kind in rules.texts:
        for text in texts[kind]:
            verdict = _verdict(rules, text)
            if verdict is not Role.UNKNOWN:
                return verdict
    return Role.UNKNOWN


def _verdict(rules: CohortRules, text: str) -> Role:
    for low, full in ((rules.low, rules.full), (rules.weak_low, rules.weak_full)):
        match _found(low, text), _found(full, text):
            case True, True:
                return Role.AMBIGUOUS
            case True, False:
                return Role.LOW
            case False, True:
                return Role.FULL
    return Role.UNKNOWN


def _found(patterns: Sequence[str], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def patient_key(rules: CohortRules, path: str, patient_id: str) -> str | None:
    """The patient's key before any pseudonym; None where neither ID nor path names one.

    An ID that names nobody ("Anonymous", literally "PatientID") counts as missing.
    """
    rule = rules.patient
    named = patient_id.strip(" \0")
    if re.fullmatch(_ANONYMOUS, named, re.IGNORECASE):
        named = ""
    if rule.source == "id" and named:
        key = _key(rule.pattern, named) if rule.pattern else named
    else:
        key = _key(rule.pattern, path) if rule.pattern else _collection_key(path)
    return f"{rule.prefix}{key}" if key else None


def _key(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.IGNORECASE)
    if not found:
        return None
    return found["key"] if "key" in found.re.groupindex else found[0]


def _collection_key(path: str) -> str | None:
    """The patient that a path of the public collection names."""
    found = re.search(r"(?<![A-Za-z0-9])[NCL]\d{3}(?![A-Za-z0-9])", path)
    return found[0] if found else None


# Dose of the simulated series in the public collection; known for its naming alone.
_COLLECTION_DOSE: Mapping[Anatomy, float] = {"head": 0.25, "chest": 0.10, "abdomen": 0.25}


def anatomy(rules: CohortRules, key: str, body_part: str) -> Anatomy:
    """The anatomy of a patient: the cohort file, else the collection's naming, else the tag.

    Args:
        key: as from `patient_key`, before any pseudonym.
        body_part: BodyPartExamined (0018,0015).
    """
    if isinstance(rules.anatomy, str):
        return rules.anatomy
    for pattern, word in (rules.anatomy or {}).items():
        if _found([pattern], key):
            return word
    return collection_anatomy(key) or anatomy_of(body_part)


def dose_fraction(rules: CohortRules, key: str, part: Anatomy) -> float | None:
    """Dose of the low series over the full dose; never from dose tags, which are inherited."""
    if isinstance(rules.dose_fraction, float):
        return rules.dose_fraction
    if rules.dose_fraction:
        return rules.dose_fraction.get(part)
    return _COLLECTION_DOSE.get(part) if collection_anatomy(key) else None
