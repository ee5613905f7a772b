"""Files that a user writes for an ingest, read as the model that they are."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from storage.errors import CohortFileError

Model = TypeVar("Model", bound=BaseModel)


def read_model(kind: str, path: Path, model: type[Model]) -> Model:
    """Read a TOML file.

    Args:
        kind: what the file is called in an error.

    Raises:
        CohortFileError: it is not there, not TOML, or holds a key or value that is not known.
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CohortFileError(f"{kind} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CohortFileError(f"{kind} {path} is not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CohortFileError(
            f"{kind} {path}: `{where}`: {first['msg']} "
            f"(known keys: {', '.join(model.model_fields)})"
        ) from error
