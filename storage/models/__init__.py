"""Runs and model versions in MLflow, and the append-only history of promotions.

In: metrics, files, models, verdicts. Out: versions, aliases, histories. May import `stores`.
"""
