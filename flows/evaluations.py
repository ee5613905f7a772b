"""Evaluations that were made: where they are kept, whether they still count, who is champion."""

import tempfile
from pathlib import Path

from flows import lineage, stores
from flows.errors import FlowError
from hqinet.quality import gate
from hqinet.quality.evidence import Evidence
from hqinet.quality.metrics import DEFINITION
from hqinet.quality.policy import Policy
from hqinet.report.page import SUMMARY
from hqinet.report.summary import Summary, load_summary
from storage.dataset.versions import Snapshot
from storage.models.promotions import History
from storage.models.versions import ModelVersion
from storage.provenance import code_version

SPLIT = "test"
"""Promotion is judged on patients that no training has seen."""


class PromotionError(FlowError):
    """A promotion that cannot be judged or made; one line that says what to do."""


def artifact(commit: int, split: str) -> str:
    """Folder of an evaluation among the artifacts of the model's run."""
    return f"evaluation/commit-{commit}-{split}"


def stored_summary(run: str, commit: int, split: str) -> Summary | None:
    """What a run's evaluation on a commit said; None where there was none, or none that is read."""
    with tempfile.TemporaryDirectory(dir=stores.scratch()) as folder:
        name = f"{artifact(commit, split)}/{SUMMARY}"
        path = stores.registry().fetch(run, name, Path(folder))
        return None if path is None else load_summary(path.read_text("utf-8"))


def counting(version: ModelVersion, snapshot: Snapshot, split: str) -> Summary | None:
    """The evaluation of a version on these very rows, if it can be compared with one made now.

    One by other code or another definition of the metrics cannot, and is to be made anew.
    """
    summary = stored_summary(version.run, snapshot.commit, split)
    if summary is None:
        return None
    made = summary.dataset, summary.dataset_digest, summary.definition, summary.evaluated_by
    now = snapshot.identity, snapshot.digest, DEFINITION, code_version()
    return summary if made == now else None


def champion(history: History | None = None) -> ModelVersion | None:
    """The champion by the history of promotions, which the registry's alias follows; None without.

    Raises PromotionError where that version is in MLflow no more.
    """
    history = history or stores.promotions().read()
    if history.last_pass is None:
        return None
    number = history.last_pass.candidate
    found = next((row for row in stores.versions() if row.version == number), None)
    if found is None:
        raise PromotionError(
            f"version {number}, champion by the history of promotions, is in MLflow no more; "
            "`hqinet promote --rollback` goes back to the champion before it"
        )
    return found


def judge(
    policy: Policy,
    version: ModelVersion,
    evidence: Evidence,
    rival: ModelVersion | None,
    snapshot: Snapshot,
) -> gate.Verdict:
    """The verdict on a version, by what its evaluation and its rival's say on the test split."""
    stated = lineage.lineage_fields(version)
    if rival is None:
        return gate.judge(policy, evidence, None, stated)
    theirs = counting(rival, snapshot, SPLIT)
    if theirs is None:
        verdict = gate.judge(policy, evidence, None, stated)
        return verdict.refused_for_want_of(missing(rival, snapshot, SPLIT))
    return gate.judge(policy, evidence, theirs.evidence(), stated)


def missing(version: ModelVersion, snapshot: Snapshot, split: str) -> gate.Outcome:
    """The rule that fails where a version has no evaluation that counts, and what to do."""
    commit = snapshot.commit
    leaked = lineage.leaked(version, snapshot.patients(split))
    if leaked:
        reason = (
            f"version {version.version} was trained or chosen on {', '.join(leaked)}, now in the "
            f"{split} split of commit {commit}, so that no fair comparison exists; move them back "
            "with `hqinet dataset splits import`, or judge on an earlier commit (--commit)"
        )
    else:
        reason = (
            f"version {version.version} has no evaluation by this code on commit {commit}; run "
            f"`hqinet evaluate --model {version.version} --commit {commit}`"
        )
    return gate.Outcome(
        rule="report present",
        passed=False,
        figure=None,
        required=f"an evaluation on the {split} split of commit {commit}",
        reason=reason,
    )
