"""DICOM files, and nothing of what they mean to a cohort.

In: files. Out: headers, an ordered and checked series with its geometry, slices in HU; and the
way back, HU to DICOM. Knows nothing of doses, pairs, cohorts or splits. May import `stores`.
"""
