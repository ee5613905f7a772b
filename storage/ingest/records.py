"""What a file means in a delivery: whose it is, which dose, of which part of the body.

A header as it is read may name a person; a record does not. It is what the rest of ingest works
with, and what is remembered on disk.
"""

from dataclasses import dataclass, replace

from storage.dicom.headers import FileHeader
from storage.ingest import cohort
from storage.ingest.cohort import CohortRules, Role
from storage.ingest.pseudonyms import Pseudonyms
from storage.vocabulary import OTHER, Anatomy, kernel_of, vendor_of


@dataclass(frozen=True, slots=True)
class Record:
    """What ingest knows of a file; free of names, UIDs and descriptions but for its path.

    Attributes:
        header: with digests in place of identifiers and of the kernel, and without texts.
        ignored: whether the cohort file leaves it out.
        patient: key of the dataset; None where the file names nobody.
        dose_fraction: of the patient's low series over the full one, where it is known.
        vendor, kernel: words of fixed vocabularies.
    """

    header: FileHeader
    ignored: bool = False
    patient: str | None = None
    role: Role = Role.UNKNOWN
    anatomy: Anatomy = "unknown"
    dose_fraction: float | None = None
    vendor: str = OTHER
    kernel: str = OTHER

    @property
    def path(self) -> str:
        """Of the file, below the delivery."""
        return self.header.path

    @property
    def kind(self) -> str:
        """`image` and `unreadable` are used; all other kinds are counted and left aside."""
        return "ignored" if self.ignored else self.header.kind


def understand(header: FileHeader, rules: CohortRules, names: Pseudonyms) -> Record:
    """Decide what a file means by the rules of its cohort."""
    if header.kind != "image":
        return Record(header)
    role = cohort.role(rules, header.path, header.description)
    if role is None:
        return Record(FileHeader(header.path, header.size, header.mtime_ns, "image"), ignored=True)
    key = cohort.patient_key(rules, header.path, header.patient_id)
    part = cohort.anatomy(rules, key or "", header.body_part)
    return Record(
        header=_without_names(header, names),
        patient=names.patient(key) if key else None,
        role=role,
        anatomy=part,
        dose_fraction=cohort.dose_fraction(rules, key or "", part),
        vendor=vendor_of(header.manufacturer),
        kernel=kernel_of(header.kernel),
    )


def _without_names(header: FileHeader, names: Pseudonyms) -> FileHeader:
    def digest(text: str) -> str:
        return names.digest(text) if text else ""

    return replace(
        header,
        patient_id="",
        description="",
        body_part="",
        manufacturer="",
        study=digest(header.study),
        series=digest(header.series),
        instance=digest(header.instance),
        frame_of_reference=digest(header.frame_of_reference),
        kernel=digest(header.kernel),
    )
