"""The `hqinet` command: options, verbs, and what they print.

In: arguments. Out: a flow's result on standard output, an exit status. Imports flows inside the
verbs, for Prefect reads its settings when it is imported.
"""
