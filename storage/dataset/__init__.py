"""The versioned dataset: volumes (Zarr) that the commits of a catalog (Delta) name.

In: slices in HU and rows. Out: commits, snapshots, lazily read pairs, splits, verification, garbage
collection. May import `stores`.
"""
