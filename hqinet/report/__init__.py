"""The page that people read: tables, figures, key slices and a viewer that need no network.

In: results of an evaluation. Out: one HTML file, PNGs. May import `quality` and `samples`.
"""
