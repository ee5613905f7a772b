"""Where things live and in which form: DICOM in, a versioned dataset, a registry of models.

Rooms import one way (tests/test_architecture.py holds the order): `stores` below all; `dicom` and
`dataset`, which do not know each other; `ingest`, which brings the one into the other; `models` and
`collections` beside them. What lies here beside the rooms, any of them may use: errors, refusals,
the words of the vocabularies, Hounsfield units, and which code is at work.
"""
