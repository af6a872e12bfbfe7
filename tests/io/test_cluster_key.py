"""The key of a cluster: its file is whole and nobody else's, is found, and is shown to nobody."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from zray.io import cluster_key
from zray.io.cluster_key import ClusterKey

KEY = ClusterKey.create("10.0.0.5:6379")
SECRETS = dataclasses.astuple(KEY)[2:]


@pytest.fixture(autouse=True)
def home(short_path: str, monkeypatch: Any) -> str:
    """The directory of the user's sessions."""
    monkeypatch.setenv("ZRAY_TMPDIR", short_path)
    monkeypatch.delenv(cluster_key.VARIABLE, raising=False)
    return os.path.dirname(cluster_key.default_path("x"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_every_cluster_has_keys_of_its_own() -> None:
    other = ClusterKey.create("10.0.0.5:6379")
    assert not set(dataclasses.astuple(other)) & {KEY.cluster, *SECRETS}
    assert len({KEY.server_public, KEY.server_secret, KEY.client_public, KEY.client_secret}) == 4
    assert len(KEY.cluster) == 16
    assert ClusterKey.create("a:1", b"id").cluster == b"id"


def test_it_is_shown_to_nobody() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY]), repr({"key": KEY})):
        assert "10.0.0.5:6379" in text
        assert not any(secret in text for secret in SECRETS)


def test_it_can_be_handed_to_a_child() -> None:
    assert pickle.loads(pickle.dumps(KEY)) == KEY
    assert copy.deepcopy(KEY) == KEY


@pytest.mark.usefixtures("open_umask")
def test_its_file_is_for_this_user_alone(short_path: str) -> None:
    path = KEY.save(f"{short_path}/key")
    assert path == f"{short_path}/key"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert ClusterKey.load(path) == KEY


def test_it_is_written_as_a_whole_or_not_at_all(short_path: str, monkeypatch: Any) -> None:
    path = KEY.save(f"{short_path}/key")
    other = ClusterKey.create("other:1")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            other.save(path)
    assert ClusterKey.load(path) == KEY
    assert not [name for name in os.listdir(short_path) if name.startswith(".")]
    assert other.save(path) == path
    assert ClusterKey.load(path) == other


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777, 0o720])
def test_a_directory_that_others_may_write_is_refused(short_path: str, mode: int) -> None:
    directory = f"{short_path}/open"
    os.mkdir(directory)
    os.chmod(directory, mode)
    with pytest.raises(PermissionError, match="others may write"):
        KEY.save(f"{directory}/key")
    assert os.listdir(directory) == []
    os.chmod(directory, 0o755)
    KEY.save(f"{directory}/key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_that_others_can_read_is_refused_with_the_mend(short_path: str, mode: int) -> None:
    path = KEY.save(f"{short_path}/key")
    os.chmod(path, mode)
    with pytest.raises(PermissionError, match=f"chmod 600 {path}"):
        ClusterKey.load(path)
    os.chmod(path, 0o400)
    assert ClusterKey.load(path) == KEY


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_refused(short_path: str) -> None:
    path = KEY.save(f"{short_path}/key")
    os.chown(path, 12345, -1)
    with pytest.raises(PermissionError, match="somebody else"):
        ClusterKey.load(path)
    os.mkdir(f"{short_path}/theirs", 0o755)
    os.chown(f"{short_path}/theirs", 12345, -1)
    with pytest.raises(PermissionError, match="others may write"):
        KEY.save(f"{short_path}/theirs/key")


def damaged() -> dict[str, bytes]:
    good = {**dataclasses.asdict(KEY), "cluster": KEY.cluster.hex()}
    other = ClusterKey.create("")
    return {
        "empty": b"",
        "binary": bytes(range(256)),
        "deep": b"[" * 20_000,
        "half": json.dumps(good).encode()[:-40],
        "a list": b"[]",
        "null": b"null",
        "a field too few": json.dumps({name: value for name, value in good.items() if name != "address"}).encode(),
        "a field too many": json.dumps({**good, "more": 1}).encode(),
        "no identity": json.dumps({**good, "cluster": ""}).encode(),
        "no hex": json.dumps({**good, "cluster": "xyz"}).encode(),
        "a number": json.dumps({**good, "server_secret": 5}).encode(),
        "an address of another kind": json.dumps({**good, "address": 5}).encode(),
        "keys that are no pair": json.dumps({**good, "client_secret": other.client_secret}).encode(),
        "a key that is too short": json.dumps({**good, "server_secret": KEY.server_secret[:-1]}).encode(),
        "no letters of a key": json.dumps({**good, "server_secret": "\u00e4" * 40}).encode(),
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_file_is_refused_and_none_of_it_is_told(short_path: str, name: str) -> None:
    path = f"{short_path}/key"
    with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(damaged()[name])
    with pytest.raises(ValueError, match="copy it anew from the head") as caught:
        ClusterKey.load(path)
    error: Any = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert not any(secret in str(error) for secret in SECRETS)


def test_what_is_no_file_is_refused(short_path: str) -> None:
    with pytest.raises(FileNotFoundError):
        ClusterKey.load(f"{short_path}/nothing")
    with pytest.raises(ValueError, match="not a file"):
        ClusterKey.load(short_path)
    os.mkfifo(f"{short_path}/pipe", 0o600)
    with pytest.raises(ValueError, match="not a file"):
        ClusterKey.load(f"{short_path}/pipe")


# -- where it is found ------------------------------------------------------------------------------------------------


def test_it_is_found_by_the_address_of_the_head(home: str) -> None:
    path = KEY.save()
    assert os.path.dirname(path) == home
    assert cluster_key.find("10.0.0.5:6379") == cluster_key.find() == path
    assert ClusterKey.load(path) == KEY


def test_the_newest_of_the_same_port_stands_for_other_names_of_the_machine() -> None:
    paths = {address: ClusterKey.create(address).save() for address in ("a:1", "b:1", "[::1]:1", "c:2", "d:11")}
    for age, path in enumerate(paths.values()):
        os.utime(path, (1000 - age, 1000 - age))
    assert cluster_key.find("b:1") == paths["b:1"]
    assert cluster_key.find("[::1]:1") == paths["[::1]:1"]
    assert cluster_key.find("localhost:1") == paths["a:1"]
    assert cluster_key.find("localhost:2") == paths["c:2"]
    assert cluster_key.find() == paths["a:1"]


def test_a_path_that_is_named_comes_first(short_path: str, monkeypatch: Any) -> None:
    KEY.save()
    paths = [KEY.save(f"{short_path}/{name}") for name in ("argument", "variable")]
    monkeypatch.setenv(cluster_key.VARIABLE, paths[1])
    assert cluster_key.find("10.0.0.5:6379") == paths[1]
    assert cluster_key.find("10.0.0.5:6379", paths[0]) == paths[0]
    with pytest.raises(FileNotFoundError, match="copy it from the machine of the head"):
        cluster_key.find("10.0.0.5:6379", f"{short_path}/nothing")


def test_where_there_is_none_the_text_says_what_to_do(home: str) -> None:
    with pytest.raises(FileNotFoundError, match="any cluster"):
        cluster_key.find()
    with pytest.raises(FileNotFoundError, match=r"the cluster at h:1 .* copy the key file .*/key-h_1, .*ZRAY_KEY_FILE"):
        cluster_key.find("h:1")


@pytest.mark.parametrize("address", ["../../x:1", "a/b:1", "\0:1", "h:1\n"])
def test_an_address_is_no_way_out_of_the_directory(home: str, address: str) -> None:
    assert os.path.dirname(os.path.realpath(cluster_key.default_path(address))) == os.path.realpath(home)
