"""Orchestration: Prefect flows that compose `storage` and `hqinet`, and the `hqinet` command."""

from flows.operations import home

home.inherit()
