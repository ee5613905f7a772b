"""Where work runs: Dask workers, the training process and its ranks, progress.

In: a function and its items, or a job. Out: results as they complete. Imports no flow.

"""
