"""What the doctor says of one thing."""

from typing import Literal

from pydantic import BaseModel

TIMEOUT = 10
"""Seconds that a server may take to answer the doctor."""


class Check(BaseModel):
    """What was found, and what to do where it is wrong."""

    name: str
    outcome: Literal["ok", "note", "failure"] = "ok"
    found: str
    advice: str = ""
