"""Reading effects: what tests ask of a machine's ``out``."""

from __future__ import annotations

from typing import Any

from zray.base import wire
from zray.base.ids import agent_id, process_id
from zray.core.effects import AFTER_PERSIST, SEND, TIMER
from zray.object_ref import ObjectRef

CONTROL = b"control".ljust(16, b"-")
NODE = b"node".ljust(16, b"-")
AGENT = agent_id(NODE)


def process(name: str) -> bytes:
    """A process id that can be read in a failure."""
    return name.encode().ljust(16, b"-")


def resident(name: str) -> wire.Address:
    """The address of a process that lives on NODE; its name has four letters at most."""
    return process_id(NODE, name.encode().ljust(4, b"-")), f"sim://{name}"


def address(name: str) -> wire.Address:
    return process(name), f"sim://{name}"


def drain(out: list[Any]) -> list[Any]:
    """The effects so far; the list is empty afterwards, as after a turn of the body."""
    taken = list(out)
    out.clear()
    return taken


def sent(effects: list[Any], kind: type) -> list[tuple[bytes, Any]]:
    """The messages of one kind among effects, at once or after the disk, with their receivers; hot ones as their class."""
    found = []
    for effect in effects:
        if effect[0] not in (SEND, AFTER_PERSIST):
            continue
        peer, message = effect[1], effect[2]
        packed = wire.pack(message)
        assert wire.well_formed(packed), f"{message} is not what the schema says"
        if packed[0] == wire.OPS[kind]:
            found.append((peer, kind(*packed[1:])))
    return found


def timers(effects: list[Any]) -> list[tuple[float, Any]]:
    return [(e[1], e[2]) for e in effects if e[0] == TIMER]


def verbs(effects: list[Any], verb: int) -> list[Any]:
    return [e[1:] for e in effects if e[0] == verb]


def make_ref(object_id: bytes, owner: wire.Address, released: list[bytes] | None = None) -> ObjectRef[Any]:
    """A reference whose release is only noted."""
    return ObjectRef(object_id, owner, (released if released is not None else []).append)
