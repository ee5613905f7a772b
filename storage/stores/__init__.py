"""Folders and object stores behind one door, and whether a server answers.

In: a path or URL. Out: stores to read and write. Imports no other room.
"""
