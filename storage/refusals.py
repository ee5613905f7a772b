"""Why something is refused: a stable code and a sentence with the offending values.

A reason quotes numbers and the standard's enumerated values only, never a free text of the file:
it enters the dataset, logs and reports. Who finds a fault raises `Refusal`; of what and of whom
it is, the caller knows, and writes down as a `Refused` row of the catalog.
"""

from enum import StrEnum

SHOWN_FILES = 5
"""So many of the files at fault are named; the reason has their number."""


class Code(StrEnum):
    """Stable codes of refusals; documented in docs/ingest.md."""

    UNREADABLE = "unreadable"
    FILE_CHANGED = "file_changed"
    OWN_DERIVED = "own_derived"
    NOT_CT = "not_ct"
    LOCALIZER = "localizer"
    SECONDARY_CAPTURE = "secondary_capture"
    LOSSY_COMPRESSION = "lossy_compression"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    NOT_HU = "not_hu"
    MISSING_PATIENT_ID = "missing_patient_id"
    MISSING_GEOMETRY = "missing_geometry"
    CONTRADICTORY_GEOMETRY = "contradictory_geometry"
    MIXED_MATRIX = "mixed_matrix"
    MIXED_SPACING = "mixed_spacing"
    MIXED_ORIENTATION = "mixed_orientation"
    CHANGING_TILT = "changing_tilt"
    DUPLICATE_SLICES = "duplicate_slices"
    MISSING_SLICES = "missing_slices"
    UNEVEN_INCREMENTS = "uneven_increments"
    TOO_FEW_SLICES = "too_few_slices"
    ZERO_VARIANCE = "zero_variance"
    IDENTICAL_DOSES = "identical_doses"
    AMBIGUOUS_ROLE = "ambiguous_role"
    UNKNOWN_ROLE = "unknown_role"
    NO_LOW_DOSE = "no_low_dose"
    NO_FULL_DOSE = "no_full_dose"
    DIFFERENT_GRIDS = "different_grids"
    NOT_CHOSEN = "not_chosen"
    DUPLICATE_PATIENT = "duplicate_patient"
    PATIENT_CONFLICT = "patient_conflict"
    SIMULATION_FAILED = "simulation_failed"
    CONVERSION_FAILED = "conversion_failed"


class Refusal(Exception):  # noqa: N818 - an outcome that is recorded, not a failure of the program
    """A series or pair that does not enter the dataset.

    Attributes:
        code: what is wrong.
        reason: a sentence with the values found and expected.
        files: paths below the delivery that show it; the first few of them.
    """

    def __init__(self, code: Code, reason: str, files: tuple[str, ...] = ()) -> None:
        super().__init__(code, reason, files)
        self.code = code
        self.reason = reason
        self.files = files

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"

    def of(self, what: str) -> "Refusal":
        """The same with what it is of at the head of the reason, as `full-dose series`."""
        return Refusal(self.code, f"{what}: {self.reason}", self.files)
