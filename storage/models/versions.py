"""The versions of a registered model, and whose they are.

They are read from a server without MLflow, whose import alone takes two seconds.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from storage.errors import RegistryError

MODEL = "hqinet"
"""Usual name of the registered model; its aliases are CHAMPION and PREVIOUS."""
CHAMPION = "champion"
PREVIOUS = "previous"
DATASET = "dataset"
"""Tag of a registered model: the identity of the dataset that its versions were trained on."""
LOGGED = "logged_model"
"""Tag of a version: the logged model whose page shows its metrics."""
_PAGE = 1000
_PATIENCE = 10.0


@dataclass(frozen=True)
class ModelVersion:
    """A registered model version with the run and logged model behind it, its tags and aliases."""

    version: int
    run: str
    logged: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Owner:
    """The dataset that a registered model belongs to.

    knows: whether a version of these tags was trained on the dataset, for registered models that
        were made before they said whose they are.
    """

    identity: str
    knows: Callable[[Mapping[str, str]], bool]


def model_version(
    number: int, run: str, tags: dict[str, str], aliases: Mapping[str, int]
) -> ModelVersion:
    """A version as the registry tells of it; aliases: those of the model, with their versions."""
    own = tuple(name for name, at in aliases.items() if at == number)
    return ModelVersion(number, run, tags.get(LOGGED, ""), tags, own)


def require_own(
    owner: Owner | None, tags: Mapping[str, str], newest: Mapping[str, str], whose: str
) -> None:
    """Raise RegistryError if a registered model is another dataset's.

    tags: the model's. newest: those of its newest version, by which a model without a tag is
    judged. whose: the model and where it is, for the message.
    """
    if owner is None:
        return
    stated = tags.get(DATASET)
    if stated == owner.identity or (stated is None and owner.knows(newest)):
        return
    raise RegistryError(
        f"the registered model {whose} belongs to another dataset"
        f"{f' ({stated})' if stated else ''}, not to this one ({owner.identity}): give "
        "this one's models a name of their own with HQINET_MODEL"
    )


def served_versions(uri: str, name: str, owner: Owner | None) -> list[ModelVersion] | None:
    """All versions on a tracking server, newest first.

    None where MLflow's own client has to be asked, and says what is wrong: the server does not
    answer, or does not take the user and password of the environment. Raises RegistryError if the
    model is another dataset's.
    """
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    api = f"{uri.rstrip('/')}/api/2.0/mlflow"
    try:
        with httpx.Client(auth=(user, password) if user else None, timeout=_PATIENCE) as client:
            found = _found(client, api, name)
            if not found:
                return []
            answer = client.get(f"{api}/registered-models/get", params={"name": name})
            model = answer.raise_for_status().json()["registered_model"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
        return None
    aliases = {row["alias"]: int(row["version"]) for row in model.get("aliases", [])}
    versions = [
        model_version(int(row["version"]), row.get("run_id", ""), _tags(row), aliases)
        for row in found
    ]
    versions.sort(key=lambda row: -row.version)
    require_own(owner, _tags(model), versions[0].tags, f"{name!r} on {uri}")
    return versions


def _found(client: httpx.Client, api: str, name: str) -> list[dict[str, Any]]:
    """The versions as the server tells of them, page by page."""
    found: list[dict[str, Any]] = []
    asked: dict[str, str | int] = {"filter": f"name = '{name}'", "max_results": _PAGE}
    while True:
        answer = client.get(f"{api}/model-versions/search", params=asked)
        page = answer.raise_for_status().json()
        found += page.get("model_versions", [])
        if not page.get("next_page_token"):
            return found
        asked["page_token"] = page["next_page_token"]


def _tags(told: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in told.get("tags", [])}
