"""The systemd user unit of the services: they start with the machine, and again if they end."""

import os
import sys
from pathlib import Path

from flows.operations import api

TAKEN = (
    "HQINET_",
    "MLFLOW_",
    *("AWS_", "AZURE_", "GOOGLE_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_", "REQUESTS_CA_BUNDLE"),
    *("PREFECT_API_SSL_", api.SERVERS, api.CLIENTS),
)
"""How variables begin that go into the unit: settings, and what lets them in elsewhere."""
UNIT = """\
[Unit]
Description=HQINet services of {home}
After=network-online.target

[Service]
Type=exec
ExecStart="{python}" -m flows.cli.main up --foreground --home "{home}"
{environment}
Restart=on-failure
RestartSec=5
KillMode=mixed
TimeoutStopSec=30

[Install]
WantedBy=default.target
"""


def write_unit(home: Path) -> Path:
    """Write `hqinet.service` for this home, with the settings and passwords of this shell."""
    config = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    folder = config / "systemd" / "user"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(TAKEN) and name != "HQINET_HOME"
    }
    lines = [f"Environment={_quoted(f'{name}={value}')}" for name, value in settings.items()]
    file = folder / "hqinet.service"
    text = UNIT.format(
        home=_escaped(str(home)), python=sys.executable, environment="\n".join(lines)
    )
    # They hold secrets, as the pseudonyms' key: what others have open is not written to.
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def _escaped(text: str) -> str:
    r"""In a unit, a percent sign begins a specifier and a backslash an escape."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'
