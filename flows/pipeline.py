"""The whole pipeline for one cohort: DICOM in, a judged model out."""

from prefect import flow
from pydantic import BaseModel

from flows import places
from flows.evaluate import EvaluateResult, EvaluationError, evaluate
from flows.ingest import IngestResult, ingest
from flows.promote import SPLIT, PromoteResult, promote
from flows.settings import (
    ClusterSettings,
    EvaluateSettings,
    IngestSettings,
    Settings,
    TrainSettings,
)
from flows.train import TrainResult, train

DEFAULTS = Settings()


class PipelineResult(BaseModel):
    """What `hqinet pipeline --json` prints."""

    ingest: IngestResult
    train: TrainResult
    evaluate: EvaluateResult
    promote: PromoteResult


@flow(name="pipeline")
def pipeline(
    source: str,
    cohort: str | None = None,
    recipe: str = "fast",
    policy: str = "default",
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
        ingest_settings: How the cohort is read, checked and split.
        cluster: Where Dask runs.
        train_settings: How training uses the machine.
        evaluate_settings: How volumes are restored.
    """
    ingested = ingest(source, cohort, ingest_settings, cluster)
    if not places.dataset().snapshot(ingested.commit).patients(SPLIT):
        raise EvaluationError(
            f"commit {ingested.commit} has no patient in the {SPLIT} split to judge a model on; "
            "ingest more patients, or move one with `hqinet dataset splits import`"
        )
    trained = train(recipe, ingested.commit, settings=train_settings)
    evaluated = evaluate(str(trained.model), ingested.commit, SPLIT, policy, evaluate_settings)
    promoted = promote(trained.model, ingested.commit, policy)
    return PipelineResult(ingest=ingested, train=trained, evaluate=evaluated, promote=promoted)
