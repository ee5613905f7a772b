"""Free texts become words of fixed vocabularies, and words inside other words are not meant."""

import pytest

from storage.vocabulary import anatomy_of, kernel_of, vendor_of


@pytest.mark.parametrize(
    ("body_part", "word"),
    [
        ("CARDIAC", "chest"),
        ("CARDIAC_CT", "chest"),
        ("ILIAC", "pelvis"),
        ("IAC", "head"),
        ("IACS", "head"),
        ("HEADNECK", "head"),
        ("CHESTABDPELVIS", "trunk"),
        ("ABDOMENPELVIS", "abdomen"),
        ("TSPINE", "spine"),
        ("Lungs", "chest"),
        ("SURFACE", "unknown"),
        ("DELIVERY", "unknown"),
        ("WHIPPLE", "unknown"),
        ("PHARMA", "unknown"),
        ("COLLEGE", "unknown"),
        ("LEG", "limb"),
        ("LOWER LEG", "limb"),
        ("right_arm", "limb"),
        ("EXTREMITY", "limb"),
        ("", "unknown"),
    ],
)
def test_parts_of_the_body_are_words_not_letters(body_part, word):
    assert anatomy_of(body_part) == word


def test_vendors_and_kernels_are_words_of_a_vocabulary():
    drift = ["SIEMENS", "Siemens Healthcare", "GE", "GE MEDICAL SYSTEMS", "Philips", "TOSHIBA"]
    assert [vendor_of(name) for name in drift] == [
        "Siemens",
        "Siemens",
        "GE",
        "GE",
        "Philips",
        "Canon",
    ]
    assert vendor_of("General Hospital of Genf") == "other"
    assert [kernel_of(k) for k in ("B40f", "Br38f", "STANDARD", "FC13", "D")] == [
        "B40f",
        "Br38f",
        "STANDARD",
        "FC13",
        "D",
    ]
    assert kernel_of("Meyer, Hans") == "other"
