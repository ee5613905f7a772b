"""Public collections that can be downloaded.

In: the name of a collection. Out: files in a folder that `ingest` reads. May import `stores`.
"""
