"""Fetching the public collection: the real series list, a real S3 server on loopback."""

import httpx
import pytest

from storage.collections import idc
from storage.errors import StorageError

COLLECTION = "ldct_and_projection_data"
BUCKET = "idc-open-data"


def test_the_pairs_of_the_collection_are_those_of_the_hundred_siemens_patients():
    everything = idc.select(COLLECTION)
    assert len(everything.patients) == 100
    assert {patient[0] for patient in everything.patients} == {"C", "L"}
    assert everything.files == 50_944
    assert everything.size == pytest.approx(26.8e9, rel=0.01)
    assert sum(series.dose == "low" for series in everything.series) == 100


def test_a_selection_by_anatomy_limit_and_name():
    chest = idc.select(COLLECTION, anatomy="chest", limit=3)
    assert len(chest.patients) == 3
    assert all(patient.startswith("C") for patient in chest.patients)
    named = idc.select(COLLECTION, patients=chest.patients[:1] * 2)
    assert named.series == tuple(s for s in chest.series if s.patient == chest.patients[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"patients": ["L999"]}, "no pair .* L999"),
        ({"anatomy": "head"}, "abdomen, chest"),
    ],
)
def test_what_is_not_there_is_named(wrong, said):
    with pytest.raises(StorageError, match=said):
        idc.select(COLLECTION, **wrong)
    with pytest.raises(StorageError, match="no collection 'x'"):
        idc.select("x")


@pytest.fixture(scope="module")
def shortest() -> idc.Selection:
    """The patient with the fewest files."""
    everything = idc.select(COLLECTION)
    of = {p: sum(s.files for s in everything.series if s.patient == p) for p in everything.patients}
    return idc.select(COLLECTION, patients=[min(of, key=of.__getitem__)])


@pytest.fixture(scope="module")
def public(s3, shortest) -> str:
    """Endpoint of a server that holds the patient's series under their real names."""
    endpoint = s3["aws_endpoint"]
    httpx.put(f"{endpoint}/{BUCKET}").raise_for_status()
    with httpx.Client() as client:
        for series in shortest.series:
            for number in range(series.files):
                url = f"{endpoint}/{BUCKET}/{series.prefix}/{number:04d}.dcm"
                put(client, url, f"{series.prefix} {number}")
    return endpoint


def put(client: httpx.Client, url: str, content: str) -> None:
    public = {"x-amz-acl": "public-read"}
    client.put(url, content=content.encode(), headers=public).raise_for_status()


def test_a_fetch_brings_everything_and_a_second_one_nothing(tmp_path, shortest, public):
    seen = []
    done = idc.fetch(
        shortest, tmp_path, endpoint=public, progress=lambda files, size: seen.append((files, size))
    )
    assert (done.files, done.present) == (shortest.files, 0)
    assert sum(files for files, _ in seen) == shortest.files
    assert sum(size for _, size in seen) == done.size
    for series in shortest.series:
        files = sorted((tmp_path / series.prefix).iterdir())
        assert len(files) == series.files
        assert files[3].read_text() == f"{series.prefix} 3"
    files[0].write_bytes(b"half")
    files[1].unlink()
    (files[0].parent / f"{files[1].name}.0123.draft").write_bytes(
        b"half, of a fetch that was killed"
    )
    files[2].write_bytes(b"x" * files[2].stat().st_size)
    again = idc.fetch(shortest, tmp_path, endpoint=public)
    assert (again.files, again.present) == (3, shortest.files - 3)
    assert files[0].read_text() == f"{series.prefix} 0"
    assert files[2].read_text() == f"{series.prefix} 2", "a file of the right size may be damaged"
    assert not list(tmp_path.rglob("*.draft"))


def test_without_a_network_it_says_so_and_nothing_of_commits(tmp_path, shortest):
    with pytest.raises(StorageError) as error:
        idc.fetch(shortest, tmp_path, endpoint="http://127.0.0.1:9")
    assert "nothing answers: check network, address and endpoint, then fetch" in str(error.value)
    assert "commit" not in str(error.value)


def test_a_bucket_that_holds_something_else_is_said_when_the_rest_is_there(
    tmp_path, shortest, public
):
    series, other = shortest.series
    url = f"{public}/{BUCKET}/{series.prefix}/extra.dcm"
    with httpx.Client() as client:
        put(client, url, "more than the index says")
        with pytest.raises(StorageError, match=f"{series.files + 1} files, the index says"):
            idc.fetch(shortest, tmp_path, endpoint=public)
        client.delete(url).raise_for_status()
    assert len(list((tmp_path / other.prefix).iterdir())) == other.files
    assert not (tmp_path / series.prefix).exists()


def test_without_an_endpoint_the_public_bucket_is_read_anonymously(monkeypatch):
    # What the dataset's store is told must not lead this one astray.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = idc._store("idc-open-data", None)
    assert store.config["skip_signature"]
    assert store.config["endpoint"] == "https://s3.us-east-1.amazonaws.com"


def test_an_endpoint_or_credentials_that_cannot_be_are_one_line(monkeypatch):
    with pytest.raises(StorageError, match="'foo' is no URL"):
        idc._store(BUCKET, "foo")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(StorageError, match=BUCKET):
        idc._store(BUCKET, "http://127.0.0.1:9")
