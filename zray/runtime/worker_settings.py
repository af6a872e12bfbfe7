"""WorkerSettings: what a node tells each of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.base.config import Config

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey


class WorkerSettings:
    """What a node tells each of its workers; passed on by fork."""

    def __init__(
        self,
        session_path: str,
        cluster: bytes,
        config: Config,
        node: dict[str, Any],
        endpoint_prefix: str,
        log_to_driver: bool,
        host: str = "",
        key: ClusterKey | None = None,
    ) -> None:
        self.host = host  # where other machines reach this one; nothing if there are none
        self.key = key
        self.session_path = session_path
        self.cluster = cluster
        self.config = config
        self.node = node
        self.endpoint_prefix = endpoint_prefix
        self.log_to_driver = log_to_driver
