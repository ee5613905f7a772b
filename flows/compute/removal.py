"""By what a restoration is judged, and what of it the record keeps."""

from typing import Any

from flows.settings import DenoiseSettings
from hqinet.quality.removal import MEASURE, Removal, RemovalLimits
from hqinet.restoration.envelope import SeriesFacts
from hqinet.restoration.export import USUAL_DOSE


def limits_for(settings: DenoiseSettings, limits: RemovalLimits) -> RemovalLimits:
    """By what a restoration is judged: the policy's limits, for what was asked to be removed."""
    # Of the noise, that of the dose which lacks is to be removed, and of that the share asked for.
    least = limits.least * settings.strength * (1 - (settings.dose or USUAL_DOSE))
    return limits.model_copy(update={"least": least})


def judged_by(settings: DenoiseSettings, limits: RemovalLimits) -> str:
    """What a judgement holds for: how removal is measured, and the limits."""
    return f"{MEASURE} {limits_for(settings, limits).model_dump_json()}"


def objections_to(removal: Removal, settings: DenoiseSettings, limits: RemovalLimits) -> list[str]:
    """Why what was removed is no noise; nothing was asked to be removed at strength 0."""
    if settings.strength == 0:
        return []
    return removal.objections(limits_for(settings, limits))


def seen_of(facts: SeriesFacts) -> dict[str, Any]:
    """What the record keeps of a source, for those who watch over many series."""
    scanner = f"{facts.vendor} {facts.kernel}"
    return {"scanner": scanner, "noise": facts.noise, "frequency": facts.frequency}


def removed_of(removal: Removal) -> dict[str, Any]:
    """What the record keeps of what was removed: share of the noise, grain, HU by tissue."""
    return {"removed": removal.amount, "grain": removal.frequency, "bias": removal.bias}
