"""Orchestration: Prefect flows that compose `storage` and `hqinet`, and the `hqinet` command."""

import atexit
import gc

from flows.operations import home

# Libraries make half a million objects that live as long as the process. To look through all of
# them again and again for garbage, and once more at the end, took a third of a short command.
gc.set_threshold(700, 10, 100)
atexit.register(gc.freeze)

home.inherit()
