"""The names of actors."""

from __future__ import annotations

import zray
from zray.util.state import list_actors


def list_named_actors(all_namespaces: bool = False) -> list[str] | list[dict[str, str]]:
    """The names of the living actors.

    Args:
        all_namespaces: those of all namespaces, not only of this job's.

    Returns:
        The names; for all namespaces a dict with ``name`` and ``namespace`` for each.

    Example:
        >>> list_named_actors()  # doctest: +SKIP
        ['counter']
    """
    named = [actor for actor in list_actors() if actor["name"] and actor["state"] != "DEAD"]
    if all_namespaces:
        return [{"name": actor["name"], "namespace": actor["ray_namespace"]} for actor in named]
    own = zray.get_runtime_context().namespace
    return [actor["name"] for actor in named if actor["ray_namespace"] == own]
