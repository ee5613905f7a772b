"""Where series are sent: named tables of a TOML file, for C-STORE (also with TLS) or STOW-RS."""

import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)

from flows.errors import FlowError
from flows.settings import SendSettings


class SendError(FlowError):
    """A series that cannot be sent, or destinations that cannot be read; one line."""


class Table(BaseModel):
    """What every destination may say.

    Attributes:
        authority: PEM file of who signed its certificate; None: those that the system trusts.
        certificate, key: PEM files by which it knows us, where it asks for that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def tls_context(self) -> ssl.SSLContext:
        """How a connection to it is secured. Raises SendError for a file that cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            named = [str(file) for file in (self.authority, self.certificate, self.key) if file]
            raise SendError(f"certificates {', '.join(named)}: {error}") from error
        return context


class Entity(Table):
    """A DICOM node."""

    host: str
    port: int = Field(gt=0, lt=65536)
    ae_title: str = Field(max_length=16)
    calling: str = Field("HQINET", max_length=16)
    tls: bool = False


class WebService(Table):
    """A DICOMweb service.

    Attributes:
        url: to which `/studies` is added.
        authorization: value of that header, as `Basic ...` or `Bearer ...`.
    """

    url: str = Field(pattern="^https?://")
    authorization: str = ""


def _kind(table: Any) -> str:  # noqa: ANN401 - whatever stands in the file
    return "web" if isinstance(table, dict) and "url" in table else "dicom"


Destination = Entity | WebService
_TAGGED = Annotated[
    Annotated[Entity, Tag("dicom")] | Annotated[WebService, Tag("web")], Discriminator(_kind)
]


def read_destinations(file: Path | None) -> dict[str, Destination]:
    """Destinations by name: a TOML file with a table for each. Raises SendError."""
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, _TAGGED]).validate_python(content)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SendError(f"destinations {file}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name, _, *place = first["loc"]
        message = f"{'.'.join(map(str, [name, *place]))}: {first['msg']}, got {first['input']!r}"
        raise SendError(f"destinations {file}: {message}") from error


def known(destinations: dict[str, Destination], name: str) -> Destination:
    """A destination by name. Raises SendError if there is none."""
    if name not in destinations:
        raise SendError(
            f"there is no destination {name!r}, only {', '.join(destinations) or 'none'}: see the "
            "file that HQINET_SEND__DESTINATIONS names"
        )
    return destinations[name]


def require_destinations(settings: SendSettings) -> None:
    """Raise SendError where what is restored is for a destination that the file does not have.

    Also for a file that cannot be read.
    """
    there = read_destinations(settings.destinations)
    for name in settings.restored:
        if name not in there:
            raise SendError(
                f"HQINET_SEND__RESTORED names {name!r}, and HQINET_SEND__DESTINATIONS no file"
                if settings.destinations is None
                else f"HQINET_SEND__RESTORED names {name!r}, which is not in "
                f"{settings.destinations}, only {', '.join(there) or 'none'}"
            )
