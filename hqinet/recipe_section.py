"""What every part of a recipe is; each stands in the room that it speaks of."""

from pydantic import BaseModel, ConfigDict


class RecipeSection(BaseModel):
    """Immutable, and no key is silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")
