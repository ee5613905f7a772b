"""The images of a file: frames of Enhanced CT, and fragments of compressed ones."""

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import UID, JPEGLSLossless, RLELossless

from storage.dicom.headers import read_header
from storage.refusals import Refusal


def compress(file: Path, syntax: UID) -> None:
    image = pydicom.dcmread(file)
    image.compress(syntax, generate_instance_uid=False)
    image.save_as(file)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_enhanced_multi_frame_ct_is_a_volume(read, tmp_path, series, syntax, enhanced):
    one = series(slices=12)
    folder = enhanced(one, tmp_path / "a")
    if syntax:
        compress(folder / "enhanced.dcm", syntax)
    assert (read(folder)[0] == one.values()).all()


def encapsulated(file: Path, fragments_of_each: int, more: int, table: bool) -> None:
    """Write the compressed frames anew: each in fragments, and the first one `more` times again."""
    image = pydicom.dcmread(file)
    number = int(image.get("NumberOfFrames", 1))
    frames = list(generate_frames(image.PixelData, number_of_frames=number))
    frames += frames[:1] * more
    image.PixelData = encapsulate(frames, fragments_of_each, has_bot=table)
    image.save_as(file)


@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("write", ["plain", "enhanced"])
def test_more_compressed_frames_than_promised_are_refused(
    read, tmp_path, series, write, syntax, table, enhanced
):
    one = series(slices=12)
    folder = one.write(tmp_path / "a") if write == "plain" else enhanced(one, tmp_path / "a")
    for file in folder.iterdir():
        compress(file, syntax)
        encapsulated(file, 1, more=0, table=table)
    assert (read(folder)[0] == one.values()).all()
    file = min(folder.iterdir())
    encapsulated(file, 1, more=1, table=table)
    promised = 1 if write == "plain" else 12
    with pytest.raises(Refusal, match=f"{promised + 1} compressed frames; expected {promised} "):
        read(folder)


def test_compressed_pixels_that_lack_a_few_bytes_are_refused(read, tmp_path, series):
    folder = series().write(tmp_path / "a")
    file = min(folder.iterdir())
    compress(file, JPEGLSLossless)
    data = file.read_bytes()
    start = data.index(b"\xff\xd8\xff") + 40
    file.write_bytes(data[:start] + data[start + 2 :])
    with pytest.raises(Refusal, match="fragments do not follow one another"):
        read(folder)


@pytest.mark.parametrize(
    ("write", "table"), [("plain", True), ("plain", False), ("enhanced", True)]
)
def test_a_frame_in_several_fragments_is_one_frame(read, tmp_path, series, write, table, enhanced):
    one = series(slices=12, matrix=(64, 64))
    folder = one.write(tmp_path / "a") if write == "plain" else enhanced(one, tmp_path / "a")
    for file in folder.iterdir():
        compress(file, JPEGLSLossless)
        encapsulated(file, 7, more=0, table=table)
    assert (read(folder)[0] == one.values()).all()


def test_an_enhanced_pair_enters_the_dataset(tmp_path, series, dataset, deliver, enhanced):
    full, low = series("L001", "FULL", slices=12), series("L001", "LOW", low=True, slices=12)
    enhanced(full, tmp_path / "source" / "full")
    enhanced(low, tmp_path / "source" / "low")
    done = deliver(dataset, tmp_path / "source")
    assert done.accepted == ["L001"]
    volume = done.snapshot.volume("L001")
    assert (volume.full[:] == full.values()).all()
    assert (volume.low[:] == low.values()).all()
    assert volume.positions == tuple(-50.0 + 3 * i for i in range(12))


def group(file: Path, frames: slice | None, macro: str, **attributes) -> None:
    """Put attributes into a functional group of some frames, or into the one that all share."""
    image = pydicom.dcmread(file)
    holders = (
        image.SharedFunctionalGroupsSequence
        if frames is None
        else image.PerFrameFunctionalGroupsSequence[frames]
    )
    for holder in holders:
        if macro not in holder:
            setattr(holder, macro, Sequence([Dataset()]))
        for name, value in attributes.items():
            setattr(holder[macro][0], name, value)
    image.save_as(file)


@pytest.mark.parametrize(
    ("frames", "macro"),
    [
        (None, "CTReconstructionSequence"),
        (slice(None), "CTReconstructionSequence"),
        (None, "UnassignedSharedConvertedAttributesSequence"),
    ],
)
def test_kernel_and_thickness_of_an_enhanced_pair_are_compared(
    tmp_path, series, dataset, deliver, frames, macro, enhanced
):
    for dose, kernel, thickness in (("full", "B30f", 3), ("low", "B50f", 5)):
        one = series("L001", dose, low=dose == "low", slices=12)
        file = enhanced(one, tmp_path / "source" / dose) / "enhanced.dcm"
        image = pydicom.dcmread(file)
        del image.SliceThickness
        image.save_as(file)
        group(file, frames, macro, ConvolutionKernel=[kernel, "x"])
        group(file, None, "PixelMeasuresSequence", SliceThickness=thickness)
        group(file, frames, "CTXRayDetailsSequence", KVP=100 if dose == "low" else 120)
    (row,) = deliver(dataset, tmp_path / "source").outcome.accepted
    assert (row.kernel, row.kvp) == ("B30f", 100)
    assert "kernels differ: low dose B50f, full dose B30f" in row.note
    assert "slice thickness differs: low dose 5 mm, full dose 3 mm" in row.note


def test_frames_of_several_kernels_or_thicknesses_have_none(
    tmp_path, series, dataset, deliver, enhanced
):
    for dose in ("full", "low"):
        one = series("L001", dose, low=dose == "low", slices=12)
        file = enhanced(one, tmp_path / "source" / dose) / "enhanced.dcm"
        group(file, None, "CTReconstructionSequence", ConvolutionKernel="B30f")
        measures = {"PixelSpacing": [0.7, 0.8], "SliceThickness": 3}
        group(file, None, "PixelMeasuresSequence", **measures)
        group(file, slice(None), "CTXRayDetailsSequence", KVP=120)
    group(file, slice(7, 8), "CTReconstructionSequence", ConvolutionKernel="B50f")
    group(file, slice(7, 8), "PixelMeasuresSequence", **measures | {"SliceThickness": 5})
    group(file, slice(7, 8), "CTXRayDetailsSequence", KVP=80)
    (row,) = deliver(dataset, tmp_path / "source").outcome.accepted
    assert row.note.split("; ") == [
        "kernels differ: low dose other, full dose B30f",
        *(f"{dose} dose: slices differ in rescale slope or intercept" for dose in ("low", "full")),
    ]
    header = read_header(file.parent, file.name)
    assert (header.thickness, header.kvp, row.kvp) == (None, None, None)
