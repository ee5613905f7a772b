"""What every process does that imports `flows`."""

import subprocess
import sys


def test_what_libraries_make_is_searched_for_garbage_neither_at_the_start_nor_at_the_end():
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
import flows
before = gc.get_stats()[2]["collections"]
import pandas, prefect
print(gc.get_stats()[2]["collections"] - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    searches, set_aside = map(int, done.stdout.split())
    assert searches <= 1
    assert set_aside > 100_000
