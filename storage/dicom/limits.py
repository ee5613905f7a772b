"""What a series is held to; apart, for the settings read it, which need no DICOM."""

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """How exact geometry must be, and how little is too little."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    position_mm: float = Field(
        0.1, gt=0, description="Slice positions may be off by this much, as rounding makes them."
    )
    spacing_mm: float = Field(
        0.001, gt=0, description="Pixel spacings of one series may differ by this much."
    )
    cosine: float = Field(
        0.001, gt=0, description="Direction cosines of one series may differ by this much."
    )
    tilt_degrees: float = Field(
        0.1, gt=0, description="The gantry's tilt may differ by this much within a series."
    )
    min_slices: int = Field(3, ge=1, description="A series of fewer slices is refused.")
    min_overlap: int = Field(
        8, ge=2, description="A pair that overlaps only in part is cropped to this many or more."
    )
