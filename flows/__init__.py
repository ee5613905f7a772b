"""Orchestration: Prefect flows that compose `storage` and `hqinet`, and the `hqinet` command."""

from flows import home

home.inherit()
