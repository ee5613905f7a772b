"""`mlflow models serve` answers for a registered model, as docs/serve.md says, without pickle."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from torch import nn

from storage.models.registry import DatasetInputs, Registry
from storage.models.versions import CHAMPION

DOCUMENT = Path(__file__).parents[3] / "docs" / "serve.md"


class Smoother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return torch.lerp(hu[:, 1:2], hu.mean(1, keepdim=True), self.share)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The address of a server for the champion."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry = Registry(uri, (folder / "artifacts").as_uri())
    run = registry.start("run", {}, DatasetInputs("x", 1, "digest"))
    example = np.zeros((2, 3, 40, 48), np.float32)
    registry.point(CHAMPION, registry.register(run, Smoother().eval(), example, {}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The document's own command, with this test's port and registry.
    (line,) = re.findall(r"^mlflow models serve .*$", DOCUMENT.read_text(), re.MULTILINE)
    words = line.removesuffix(" &").replace("5001", str(port)).split()
    program = Path(sys.executable).with_name(words[0])
    more = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [program, *words[1:]],
            env=os.environ | more | {"PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        for _ in range(300):
            with suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/ping").raise_for_status()
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, 15)


def test_the_request_of_the_document_is_answered_with_restored_slices(server, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    file = tmp_path / "request.py"
    file.write_text(script.replace("http://127.0.0.1:5001", server))
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(1, 1, 64, 64)"


def test_values_are_hu_in_and_hu_out(server):
    low = np.random.default_rng(0).normal(40, 25, (2, 3, 20, 24)).astype(np.float32)
    answer = httpx.post(f"{server}/invocations", json={"inputs": low.tolist()}, timeout=60)
    restored = np.array(answer.raise_for_status().json()["predictions"])
    assert np.allclose(restored, (low[:, 1:2] + low.mean(1, keepdims=True)) / 2, atol=1e-3)


def test_another_shape_is_refused(server):
    answer = httpx.post(f"{server}/invocations", json={"inputs": [[1.0]]}, timeout=60)
    assert answer.status_code == 400
