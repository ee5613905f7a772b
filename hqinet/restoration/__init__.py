"""Whole volumes restored in HU, and the file that a network is shipped in.

In: a network or an exported program, a volume in HU. Out: restored slices in HU. May import
`networks` and `samples`.
"""
