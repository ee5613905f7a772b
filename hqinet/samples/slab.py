"""The slab of three neighbouring slices that a network sees, and what stands beyond an edge."""

TRUE, ISOLATED, EDGE_BEFORE, EDGE_AFTER = range(4)
"""Cases of neighbours that training draws; rows of NEIGHBOURS."""
NEIGHBOURS = ((0, 1, 2), (1, 1, 1), (0, 1, 0), (2, 1, 2))
"""Slices of a slab that stand for before, middle and after, in these four cases."""


def window_slices(middle: int, slices: int) -> tuple[int, int, int]:
    """Return the three slice numbers of a window.

    Beyond an edge stands the other neighbour, whose noise is not that of the slice itself; a single
    slice stands three times.
    """
    if slices == 1:
        return 0, 0, 0
    before = middle - 1 if middle else 1
    return before, middle, middle + 1 if middle + 1 < slices else middle - 1
