"""The promotion flow: a challenger is judged against the champion, and takes its place or not."""

from typing import Any, Literal

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows import events, stores
from flows.compute.shadows import evidence_of
from flows.evaluations import SPLIT, PromotionError, champion, counting, judge, missing
from flows.retries import TRIED_AGAIN
from flows.settings import Settings
from flows.states import REFUSED, ended
from hqinet.quality import gate
from hqinet.quality.policy import Policy, load_policy
from storage.dataset.versions import Snapshot
from storage.errors import Conflict
from storage.models.promotions import Entry, History
from storage.models.versions import CHAMPION, PREVIOUS, ModelVersion

POLICY = Settings().policy
RUN = "flow_run"
"""In an entry's details: the flow run that made it, which may be started again after it did."""


class PromoteResult(BaseModel):
    """What `hqinet promote --json` prints."""

    verdict: Literal["promoted", "refused", "rolled back"]
    model: int
    champion: int | None
    commit: int | None
    policy: str | None
    reasons: list[str]
    rules: list[dict[str, Any]]
    shadow: dict[str, Any] | None = None
    """What the version did to live series in the shadow, which decides nothing by itself."""


@flow(name="promote")
def promote(
    model: int | None = None, commit: int | None = None, policy: str = POLICY
) -> PromoteResult:
    """Judge a challenger on the test split of a commit; only a pass moves the alias champion.

    Args:
        model: Version to judge; the newest if empty.
        commit: Of the dataset, on which both were evaluated; the latest if empty.
        policy: Name of a policy or a TOML file.
    """
    rules = load_policy(policy)
    version = stores.registry().version("latest" if model is None else model)
    snapshot = stores.dataset().snapshot(commit)
    seen = evidence_of(version.version)
    details = {
        RUN: runtime.flow_run.id,
        "policy": policy,
        "shadow": None if seen is None else seen.model_dump(),
    }
    while True:
        history = repair()
        if (before := _made_before(history)) is not None:
            entry, verdict = before, gate.Verdict.model_validate(before.details)
            break
        rival = champion(history)
        verdict = judge_version(version, rival, snapshot, rules)
        entry = Entry(
            action="promote",
            candidate=version.version,
            champion=rival.version if rival else None,
            passed=verdict.passed,
            commit=snapshot.commit,
            details=verdict.model_dump() | details,
        )
        try:
            stores.promotions().append(entry, history)
        except Conflict:
            get_run_logger().warning("another promotion came first: judging again")
            continue
        break
    if verdict.passed:
        update_aliases()
    tag_verdict(entry)
    result = publish(entry, verdict)
    if verdict.passed:
        events.champion_changed(entry.candidate, entry.champion, entry.commit, "promoted")
    reasons = f"version {entry.candidate}: {'; '.join(verdict.reasons)}"
    return ended(result, None if verdict.passed else REFUSED, reasons)


@flow(name="rollback promotion")
def rollback_promotion() -> PromoteResult:
    """Give the alias champion back to the version that had it before."""
    history = stores.promotions().read()
    entry = _made_before(history)
    if entry is None:
        entry = _step_back(history)
        stores.promotions().append(entry, history)
    update_aliases()
    tag_verdict(entry)
    events.champion_changed(entry.candidate, entry.champion, None, "rolled back")
    return PromoteResult(
        verdict="rolled back",
        model=entry.candidate,
        champion=entry.champion,
        commit=None,
        policy=None,
        reasons=[],
        rules=[],
    )


def _step_back(history: History) -> Entry:
    *earlier, last = history.succession or [None]
    there = {row.version for row in stores.versions()}
    target = next((version for version in reversed(earlier) if version in there), None)
    if target is None:
        raise PromotionError("there is no earlier champion to go back to; see `hqinet models`")
    return Entry(
        action="rollback",
        candidate=target,
        champion=last,
        passed=True,
        commit=None,
        details={RUN: runtime.flow_run.id},
    )


def _made_before(history: History) -> Entry | None:
    """The entry that an earlier attempt of this flow run made before its machine died."""
    return next((e for e in history.entries if e.details.get(RUN) == runtime.flow_run.id), None)


@task(cache_policy=NO_CACHE, **TRIED_AGAIN)
def judge_version(
    version: ModelVersion, rival: ModelVersion | None, snapshot: Snapshot, policy: Policy
) -> gate.Verdict:
    """The verdict on a version; a missing report is a rule that fails, not an error."""
    if rival is not None and rival.version == version.version:
        raise PromotionError(f"version {version.version} is the champion already")
    ours = counting(version, snapshot, SPLIT)
    if ours is None:
        nothing = gate.Verdict(passed=False, outcomes=[])
        return nothing.refused_for_want_of(missing(version, snapshot, SPLIT))
    return judge(policy, version, ours.evidence(), rival, snapshot)


def repair() -> History:
    """Make aliases and tags follow the history, whose writer may have died; returns the history."""
    history = stores.promotions().read()
    if not history.entries:
        return history
    last = history.last_pass
    pointed = next((v.version for v in stores.versions() if CHAMPION in v.aliases), None)
    if last is not None and pointed != last.candidate:
        update_aliases()
    tag_verdict(history.entries[-1])
    return history


def update_aliases() -> None:
    """Point the aliases where the history says, until no other promotion came in between."""
    registry, done = stores.registry(), None
    while (last := (history := stores.promotions().read()).last_pass) != done:
        # The champion last: `repair` finishes what stops before it.
        there = {row.version for row in registry.versions()}
        to = champion(history)
        if last is not None and last.champion in there:
            registry.point(PREVIOUS, last.champion)
        if to is not None:
            registry.point(CHAMPION, to.version)
        done = last


def tag_verdict(entry: Entry) -> None:
    """Write an entry's verdict on the version that it is about, unless it stands there already."""
    registry = stores.registry()
    about = entry.champion if entry.action == "rollback" else entry.candidate
    version = next((row for row in registry.versions() if row.version == about), None)
    if version is None:
        return
    tags = verdict_tags(entry)
    # Who could not be judged here keeps the verdict of where it was.
    unjudged = entry.action == "promote" and not entry.details.get("judged", True)
    if unjudged and "verdict" in version.tags:
        return
    if any(version.tags.get(name) != value for name, value in tags.items()):
        registry.tag_version(version.version, tags)


def verdict_tags(entry: Entry) -> dict[str, str]:
    """The tags of a version that was judged, or taken back."""
    if entry.action == "rollback":
        return {"verdict": "rolled back"}
    verdict = gate.Verdict.model_validate(entry.details)
    return {
        "verdict": "promoted" if verdict.passed else "refused",
        "verdict_commit": str(entry.commit),
        "verdict_policy": str(entry.details.get("policy", "")),
        "verdict_reasons": "; ".join(verdict.reasons) or "every rule passed",
    } | {
        f"rule_{outcome.rule.replace(' ', '_')}": f"{outcome.word}: {outcome.figure} "
        f"({outcome.required})"
        for outcome in verdict.outcomes
    }


@task(cache_policy=NO_CACHE)
def publish(entry: Entry, verdict: gate.Verdict) -> PromoteResult:
    """Show the verdict on Prefect's page, and return it as it is printed."""
    word: Literal["promoted", "refused"] = "promoted" if verdict.passed else "refused"
    create_markdown_artifact(
        key="promotion",
        markdown=_markdown(verdict, entry.details.get("shadow")),
        description=f"version {entry.candidate} {word} on commit {entry.commit}",
    )
    get_run_logger().info("version %d %s", entry.candidate, word)
    return PromoteResult(
        verdict=word,
        model=entry.candidate,
        champion=entry.champion,
        commit=entry.commit,
        policy=entry.details["policy"],
        reasons=verdict.reasons,
        rules=[outcome.model_dump() | {"outcome": outcome.word} for outcome in verdict.outcomes],
        shadow=entry.details.get("shadow"),
    )


def _markdown(verdict: gate.Verdict, in_shadow: dict[str, Any] | None) -> str:
    lines = ["| rule | outcome | figure | required | reason |", "|---|---|--:|---|---|"]
    for outcome in verdict.outcomes:
        figure = "" if outcome.figure is None else f"{outcome.figure:.3f}"
        word = outcome.word if outcome.passed else f"**{outcome.word}**"
        lines.append(
            f"| {outcome.rule} | {word} | {figure} | {outcome.required} | {outcome.reason} |"
        )
    if in_shadow is not None:
        lines += ["", f"In the shadow, on live series, decides nothing: {in_shadow['said']}."]
    return "\n".join(lines)
