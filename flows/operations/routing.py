"""Where a received series goes: rules on its attributes, of which the first that fits decides.

A rules file is TOML, read with nothing but comparison:

    [[rule]]
    to = "denoise"                                 # ingest, denoise, hold or ignore
    when = { Modality = "CT", SeriesDescription = "*low*" }

Every pattern must fit its attribute, `*` and `?` as in a shell, without regard to case; a missing
attribute is empty. A series that fits no rule is held.
"""

import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from flows.errors import FlowError

Target = Literal["ingest", "denoise", "hold", "ignore"]


class RulesError(FlowError):
    """A rules file that cannot be read; one line that names the rule."""


class Rule(BaseModel):
    """One rule: patterns by the keyword of their attribute; without any it fits every series."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: Target
    when: dict[str, str] = {}

    @field_validator("when")
    @classmethod
    def _known(cls, when: dict[str, str]) -> dict[str, str]:
        for keyword in when:
            if tag_for_keyword(keyword) is None:
                raise ValueError(f"{keyword!r} is no keyword of a DICOM attribute")
        return when

    def fits(self, header: Dataset) -> bool:
        """Whether every pattern fits."""
        return all(
            fnmatch(_text(header, keyword).casefold(), pattern.casefold())
            for keyword, pattern in self.when.items()
        )


class Rules(BaseModel):
    """All rules, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: list[Rule] = []

    def route(self, header: Dataset) -> tuple[Target, int | None]:
        """Where a series goes, and the number of the rule that says so, from 1; None for none."""
        for number, rule in enumerate(self.rule, 1):
            if rule.fits(header):
                return rule.to, number
        return "hold", None


def read_rules(file: Path | None) -> Rules:
    """The rules of a file; without one, everything is held.

    Raises RulesError where it cannot be read.
    """
    if file is None:
        return Rules()
    try:
        return Rules.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RulesError(f"rules {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RulesError(
            f"rules {file}: {place}: {first['msg']}, got {first['input']!r}"
        ) from error


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
