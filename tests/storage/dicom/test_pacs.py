"""A real PACS, Orthanc, takes source and derived series, and gives them back as one study."""

import pydicom


def test_source_and_derived_stand_in_one_study_and_come_back_as_they_were(
    orthanc, tmp_path, series, restored
):
    source = series("L042", slices=5, matrix=(40, 48)).write(tmp_path / "source")
    derived = restored(source)
    orthanc.store(source)
    orthanc.store(derived)
    first = pydicom.dcmread(min(derived.iterdir()))
    (study,) = orthanc.find("studies?PatientID=L042")
    assert study["0020000D"]["Value"] == [first.StudyInstanceUID]
    rows = orthanc.find(f"studies/{first.StudyInstanceUID}/series?includefield=0008103E")
    described = {row["0020000E"]["Value"][0]: row["0008103E"]["Value"][0] for row in rows}
    assert described[first.SeriesInstanceUID] == "HQINet 3 Full Dose Images"
    assert sorted(described.values()) == ["Full Dose Images", "HQINet 3 Full Dose Images"]
    for folder in (source, derived):
        sent = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, folder.iterdir())}
        uid = next(iter(sent.values())).SeriesInstanceUID
        back = orthanc.retrieve(f"studies/{first.StudyInstanceUID}/series/{uid}")
        assert {image.SOPInstanceUID for image in back} == sent.keys()
        for image in back:
            assert image.PixelData == sent[image.SOPInstanceUID].PixelData
            assert image.to_json() == sent[image.SOPInstanceUID].to_json()
