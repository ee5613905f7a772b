"""Folders and object stores behind one door, whole files, and versioned tables.

In: a path or URL. Out: stores to read and write, files that are there whole or not at all, Delta
tables written compare-and-swap, and whether a server answers. May import no other room.
"""
