"""The home of an installation and the servers that run in it.

In: a folder. Out: the environment of every process, servers that are up. Imports no flow.
"""
