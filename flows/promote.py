"""The promotion flow: a challenger is judged against the champion, and takes its place or not."""

from typing import Any, Literal

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows import lineage, stores
from flows.evaluate import evaluated, no_comparison
from hqinet.quality import gate
from storage.dataset.versions import Snapshot
from storage.errors import Conflict, StorageError
from storage.models.promotions import Entry, History
from storage.models.registry import CHAMPION, PREVIOUS, ModelVersion

SPLIT = "test"
"""Promotion is judged on patients that no training has seen."""


class PromotionError(StorageError):
    """A promotion that cannot be judged or made; one line that says what to do."""


class PromoteResult(BaseModel):
    """What `hqinet promote --json` prints."""

    verdict: Literal["promoted", "refused", "rolled back"]
    candidate: int
    champion: int | None
    commit: int | None
    reasons: list[str]
    rules: list[dict[str, Any]]


@flow(name="promote")
def promote(
    candidate: int | None = None, commit: int | None = None, policy: str = "default"
) -> PromoteResult:
    """Judge a challenger on the test split of a commit; only a pass moves the alias champion.

    Args:
        candidate: Model version; the newest if empty.
        commit: Of the dataset, on which both were evaluated; the latest if empty.
        policy: Name of a policy or a TOML file.
    """
    version = stores.registry().version("latest" if candidate is None else candidate)
    snapshot = stores.dataset().snapshot(commit)
    while True:
        history = repair_aliases(stores.promotions().read())
        champion = stores.registry().champion()
        verdict = judge(version, champion, snapshot, gate.load_policy(policy))
        entry = Entry(
            action="promote",
            candidate=version.version,
            champion=champion.version if champion else None,
            passed=verdict.passed,
            commit=snapshot.commit,
            details=verdict.model_dump() | {"policy": policy},
        )
        try:
            stores.promotions().append(entry, history)
        except Conflict:
            get_run_logger().warning("another promotion came first: judging again")
            continue
        break
    if verdict.passed:
        update_aliases()
    return record(entry, verdict)


@flow(name="rollback promotion")
def rollback_promotion() -> PromoteResult:
    """Give the alias champion back to the version that had it before."""
    history = stores.promotions().read()
    *earlier, last = history.succession or [None]
    there = {row.version for row in stores.registry().versions()}
    target = next((version for version in reversed(earlier) if version in there), None)
    if target is None:
        raise PromotionError("there is no earlier champion to go back to; see `hqinet models`")
    entry = Entry(
        action="rollback",
        candidate=target,
        champion=last,
        passed=True,
        commit=None,
        details={},
    )
    stores.promotions().append(entry, history)
    update_aliases()
    if last in there:
        stores.registry().tag_version(last, {"verdict": "rolled back"})
    return PromoteResult(
        verdict="rolled back",
        candidate=entry.candidate,
        champion=entry.champion,
        commit=None,
        reasons=[],
        rules=[],
    )


@task(cache_policy=NO_CACHE)
def judge(
    version: ModelVersion, champion: ModelVersion | None, snapshot: Snapshot, policy: gate.Policy
) -> gate.Verdict:
    """The verdict on a version; a missing report is a rule that fails, not an error."""
    if champion is not None and champion.version == version.version:
        raise PromotionError(f"version {version.version} is the champion already")
    tables: list[pd.DataFrame | None] = []
    for judged in (version, champion):
        if judged is None:
            tables.append(None)
            continue
        table = evaluated(judged, snapshot, SPLIT)
        if table is None:
            missing = no_comparison(judged, snapshot, SPLIT)
            return gate.Verdict(passed=False, outcomes=[missing])
        tables.append(table)
    return gate.judge(policy, tables[0], tables[1], lineage.lineage_fields(version))


@task(cache_policy=NO_CACHE)
def repair_aliases(history: History) -> History:
    """Make the alias follow the history: a promotion may have died in between, an alias be lost."""
    last, champion = history.last_pass, stores.registry().champion()
    if last is not None and (champion is None or champion.version != last.candidate):
        update_aliases()
    return history


def update_aliases() -> None:
    """Point the aliases where the history says, until no other promotion came in between."""
    registry, done = stores.registry(), None
    while (last := stores.promotions().read().last_pass) != done:
        there = {row.version for row in registry.versions()}
        if last.candidate not in there:
            raise PromotionError(
                f"version {last.candidate}, champion by the history of promotions, is in MLflow no "
                "more; `hqinet promote --rollback` goes back to the champion before it"
            )
        # The champion last: `repair_aliases` finishes what stops before it.
        if last.champion in there:
            registry.point(PREVIOUS, last.champion)
        registry.point(CHAMPION, last.candidate)
        done = last


@task(cache_policy=NO_CACHE)
def record(entry: Entry, verdict: gate.Verdict) -> PromoteResult:
    """Write the verdict where people look for it: on the version, and on Prefect's page."""
    word = "promoted" if verdict.passed else "refused"
    tags = {"verdict": word, "verdict_commit": str(entry.commit)}
    tags["verdict_reasons"] = "; ".join(verdict.reasons) or "every rule passed"
    tags |= {
        f"rule_{outcome.rule.replace(' ', '_')}": f"{'pass' if outcome.passed else 'refuse'}: "
        f"{outcome.figure} ({outcome.required})"
        for outcome in verdict.outcomes
    }
    # Who could not be judged here keeps the verdict of where it was.
    if verdict.judged or "verdict" not in stores.registry().version(entry.candidate).tags:
        stores.registry().tag_version(entry.candidate, tags)
    create_markdown_artifact(
        key="promotion",
        markdown=_markdown(verdict),
        description=f"version {entry.candidate} {word} on commit {entry.commit}",
    )
    get_run_logger().info("version %d %s", entry.candidate, word)
    return PromoteResult(
        verdict=word,
        candidate=entry.candidate,
        champion=entry.champion,
        commit=entry.commit,
        reasons=verdict.reasons,
        rules=[outcome.model_dump() for outcome in verdict.outcomes],
    )


def _markdown(verdict: gate.Verdict) -> str:
    lines = ["| rule | outcome | figure | required | reason |", "|---|---|--:|---|---|"]
    for outcome in verdict.outcomes:
        figure = "" if outcome.figure is None else f"{outcome.figure:.3f}"
        word = "pass" if outcome.passed else "**refuse**"
        lines.append(
            f"| {outcome.rule} | {word} | {figure} | {outcome.required} | {outcome.reason} |"
        )
    return "\n".join(lines)
