"""ClusterKey: what proves that a process belongs to a cluster, and the file in which it lies.

The head of a cluster that other machines may join makes the key. On its own machine all find the file in the directory of
the user's sessions; on others it is copied there, or named. Who can read the file can run code on every node of the cluster,
so nobody else may: that is checked, as ssh does it. The text of errors never holds anything of the contents.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from dataclasses import dataclass, fields

from zray.io.handshake import key_pair, public_key
from zray.io.session import base_directory

VARIABLE = "ZRAY_KEY_FILE"
_PREFIX = "key-"
_BYTES_MAX = 1 << 16


@dataclass(frozen=True, slots=True, repr=False)
class ClusterKey:
    """The key of one cluster.

    Args:
        cluster: identity of the cluster.
        address: of its head, as ``host:port``.
        server_public: all who connect know it, and believe only who has its secret.
        server_secret: of those who are connected to.
        client_public: who has its secret is admitted.
        client_secret: of those who connect.
    """

    cluster: bytes
    address: str
    server_public: str
    server_secret: str
    client_public: str
    client_secret: str

    def __repr__(self) -> str:
        return f"ClusterKey(cluster={self.cluster.hex()}, address={self.address!r}, ...)"

    @classmethod
    def create(cls, address: str, cluster: bytes = b"") -> ClusterKey:
        """A new key, for a new cluster unless one is given."""
        return cls(cluster or os.urandom(16), address, *key_pair(), *key_pair())

    def save(self, path: str = "") -> str:
        """Write the key to a file that only this user can read; it is there completely or not at all.

        Args:
            path: of the file; by default where ``find`` looks for the key of this address.

        Returns:
            The path.

        Raises:
            PermissionError: others may write to the directory, and so could put their file in its place.
        """
        path = os.path.abspath(path) if path else default_path(self.address)
        directory = os.path.dirname(path)
        status = os.stat(directory)
        if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
            raise PermissionError(
                f"others may write to {directory}: a key is safe only where they may not (chmod go-w {directory}, or another one)"
            )
        contents = {field.name: getattr(self, field.name) for field in fields(self)}
        contents["cluster"] = self.cluster.hex()
        fd, new = tempfile.mkstemp(prefix=".new-", dir=directory)  # which makes it 0600
        try:
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(contents, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
            os.unlink(new)
            raise
        return path

    @classmethod
    def load(cls, path: str) -> ClusterKey:
        """Read the key from a file.

        Raises:
            PermissionError: others can read it, or it is somebody else's.
            ValueError: it is not the file of a key.
            OSError: it can not be read.
        """
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe is not waited for
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a file")
            if status.st_uid not in (os.getuid(), 0):
                raise PermissionError(f"the key file {path} belongs to somebody else: make a copy of your own (cp, chmod 600)")
            if status.st_mode & 0o077:
                raise PermissionError(
                    f"others can read the key file {path}: chmod 600 {path}; and start the cluster anew if they may have done so"
                )
            key = cls._parse(os.read(fd, _BYTES_MAX))
        finally:
            os.close(fd)
        if key is None:
            raise ValueError(f"{path} is not the key file of a cluster, or it is damaged: copy it anew from the head")
        return key

    @classmethod
    def _parse(cls, text: bytes) -> ClusterKey | None:
        try:
            contents = json.loads(text)
            key = cls(**{**contents, "cluster": bytes.fromhex(contents["cluster"])})
            whole = (
                bool(key.cluster)
                and isinstance(key.address, str)
                and public_key(key.server_secret) == key.server_public
                and public_key(key.client_secret) == key.client_public
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return key if whole else None


def default_path(address: str) -> str:
    """Where the key of the cluster whose head has this address lies, for all processes of this user on this machine."""
    return os.path.join(base_directory(), _PREFIX + re.sub(r"[^\w.-]", "_", address))


def find(address: str = "", path: str = "") -> str:
    """The path of the key file of a cluster.

    Args:
        address: of its head; "" is that of which the key is the newest.
        path: where the user says it lies.

    Looked at, in this order: ``path``; the variable ``ZRAY_KEY_FILE``; the directory of the user's sessions, for the key of
    this address, then for the newest of the same port, since a machine has several addresses.

    Raises:
        FileNotFoundError: there is none; the text says what to do.
    """
    named = path or os.environ.get(VARIABLE, "")
    if named:
        if not os.path.exists(named):
            raise FileNotFoundError(f"there is no key file {named}: copy it from the machine of the head, and chmod 600 it")
        return named
    wanted = default_path(address)
    if address and os.path.exists(wanted):
        return wanted
    port = "_" + address.rpartition(":")[2] if address else ""
    with os.scandir(os.path.dirname(wanted)) as entries:
        found = [(e.stat().st_mtime, e.path) for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(port)]
    if found:
        return max(found)[1]
    cluster = f"the cluster at {address}" if address else "any cluster"
    raise FileNotFoundError(
        f"there is no key of {cluster} on this machine: copy the key file of its head to {wanted}, "
        f"or say where it lies (--key-file, or the variable {VARIABLE})"
    )
