"""The whole pipeline for one cohort: DICOM in, a judged model out."""

from prefect import flow
from pydantic import BaseModel

from flows import stores
from flows.evaluate import EvaluateResult, EvaluationError, evaluate
from flows.evaluations import SPLIT
from flows.ingest import ingest
from flows.promote import PromoteResult, promote
from flows.settings import (
    ClusterSettings,
    EvaluateSettings,
    IngestSettings,
    Settings,
    TrainSettings,
)
from flows.states import REFUSED, ended
from flows.train import NO_OVERRIDES, TrainResult, train
from hqinet.quality.policy import load_policy
from hqinet.training.recipe import load_recipe
from storage.ingest.outcome import Outcome

DEFAULTS = Settings()


class PipelineResult(BaseModel):
    """What `hqinet pipeline --json` prints."""

    ingest: Outcome
    train: TrainResult
    evaluate: EvaluateResult
    promote: PromoteResult


@flow(name="pipeline")
def pipeline(  # noqa: PLR0913, PLR0917 - a form on Prefect's page
    source: str,
    cohort: str | None = None,
    recipe: str = DEFAULTS.recipe,
    policy: str = DEFAULTS.policy,
    overrides: list[str] = NO_OVERRIDES,
    ingest_settings: IngestSettings = DEFAULTS.ingest,
    cluster: ClusterSettings = DEFAULTS.cluster,
    train_settings: TrainSettings = DEFAULTS.train,
    evaluate_settings: EvaluateSettings = DEFAULTS.evaluate,
) -> PipelineResult:
    """Ingest a cohort, train on the commit it makes, evaluate, and promote or refuse.

    Args:
        source: Folder of DICOM files, in any layout.
        cohort: Name of the delivery; the folder's name if empty.
        recipe: Name of a recipe or a TOML file.
        policy: Name of a promotion policy or a TOML file.
        overrides: Lines of TOML on top of the recipe, as `model.width = 0.25`.
        ingest_settings: How the cohort is read, checked and split.
        cluster: Where Dask runs.
        train_settings: How training uses the machine.
        evaluate_settings: How volumes are restored.
    """
    # A mistake in either is better known before hours of training than after.
    load_recipe(recipe, *overrides)
    load_policy(policy)
    ingested = ingest(source, cohort, ingest_settings, cluster)
    if not stores.dataset().snapshot(ingested.commit).patients(SPLIT):
        raise EvaluationError(
            f"commit {ingested.commit} has no patient in the {SPLIT} split to judge a model on; "
            "ingest more patients, or move one with `hqinet dataset splits import`"
        )
    trained = train(recipe, ingested.commit, overrides=overrides, settings=train_settings)
    evaluated = evaluate(
        str(trained.model), ingested.commit, SPLIT, policy, evaluate_settings, cluster
    )
    promoted = promote(trained.model, ingested.commit, policy)
    result = PipelineResult(ingest=ingested, train=trained, evaluate=evaluated, promote=promoted)
    refused = promoted.verdict == "refused"
    reasons = f"version {trained.model}: {'; '.join(promoted.reasons)}"
    return ended(result, REFUSED if refused else None, reasons)
