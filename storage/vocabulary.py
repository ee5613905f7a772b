"""Words of fixed vocabularies for what headers say in free text: anatomy, vendor, kernel.

A free text may name a person; what comes out of here does not.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Anatomy = Literal["head", "neck", "chest", "abdomen", "pelvis", "trunk", "spine", "limb", "unknown"]

OTHER = "other"
"""A vendor or kernel that is no word of the vocabularies."""


def _whole(words: str) -> str:
    """These words by themselves: parts of others are not meant, as IAC in CARDIAC."""
    return rf"(?<![A-Z])(?:{words})S?(?![A-Z])"


# Parts of the body that the standard joins into one word (CHESTABDPELVIS, TSPINE) are found
# anywhere; of two that are found, the first in this table is taken.
_BODY_PARTS: Sequence[tuple[str, Anatomy]] = (
    (r"(CHEST|THORAX|LUNG).*(ABD|PELV)|TRUNK|WHOLE ?BODY|NECK.*(ABD|PELV)", "trunk"),
    (rf"HEAD|BRAIN|SKULL|TEMPORAL|{_whole('FACE|SINUS|SINUSE|ORBIT|IAC')}", "head"),
    (r"SPINE", "spine"),
    (r"NECK|LARYNX", "neck"),
    (rf"CHEST|THORAX|CORONARY|CARDIAC|{_whole('LUNG|HEART')}", "chest"),
    (rf"ABD|PANCREAS|{_whole('LIVER|KIDNEY|COLON|STOMACH')}", "abdomen"),
    (rf"PELVIS|BLADDER|PROSTATE|UTERUS|{_whole('HIP|ILIAC')}", "pelvis"),
    (
        "EXTREM|"
        + _whole(
            "LIMB|LEG|KNEE|ANKLE|FOOT|THIGH|CALF|ARM|HAND|WRIST|ELBOW|SHOULDER|FEMUR|FOREARM"
            "|UPPERARM|LOWERLEG|UPPERLEG|UPPERLIMB|LOWERLIMB"
        ),
        "limb",
    ),
)
_COLLECTION: Mapping[str, Anatomy] = {"N": "head", "C": "chest", "L": "abdomen"}
_VENDORS = (
    (r"siemens", "Siemens"),
    (r"^\s*ge\b|general electric", "GE"),
    (r"philips", "Philips"),
    (r"toshiba|canon", "Canon"),
    (r"united ?imaging|uih", "United Imaging"),
    (r"hitachi|fuji", "Hitachi"),
    (r"neusoft", "Neusoft"),
)
_KERNELS = (
    r"[BDHJTUI][A-Za-z]?\d{2}[a-z]?"  # Siemens
    r"|SOFT|STANDARD|STND|DETAIL|LUNG|BONE|BONEPLUS|EDGE|CHEST|ULTRA"  # GE
    r"|Y?[A-EL]|YA|YB"  # Philips
    r"|FC\d{2}"  # Canon
)


def anatomy_of(body_part: str) -> Anatomy:
    """BodyPartExamined (0018,0015) as a word."""
    for pattern, word in _BODY_PARTS:
        if re.search(pattern, body_part, re.IGNORECASE):
            return word
    return "unknown"


def collection_anatomy(patient: str) -> Anatomy | None:
    """What the naming of LDCT-and-Projection-data says (`C067`); None for any other ID."""
    return _COLLECTION[patient[0]] if re.fullmatch(r"[NCL]\d{3}", patient) else None


def vendor_of(manufacturer: str) -> str:
    """Manufacturer (0008,0070) as a word."""
    for pattern, word in _VENDORS:
        if re.search(pattern, manufacturer, re.IGNORECASE):
            return word
    return OTHER


def kernel_of(value: str) -> str:
    """ConvolutionKernel (0018,1210) where it is a vendor's known name; free text is `OTHER`."""
    return value if re.fullmatch(_KERNELS, value) else OTHER
