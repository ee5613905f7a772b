"""The home of an installation and the services that run in it.

In: a folder. Out: the environment of every process, servers and workers that are up, what Prefect's
server does by itself. Imports no flow; what must be quick or outlive Prefect imports no Prefect.
"""
