"""Lifecycles: states and the moves between them, as data.

A lifecycle is an enum, a sentence per state, and a table ``state -> event -> state``. Machines move through
``Lifecycle.next``; a move that the table does not have is a bug of ours. The drawings in ``docs/states`` are made from
the tables.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

from zray.exceptions import InvariantError

S = TypeVar("S", bound=Enum)


class Lifecycle(Generic[S]):
    """One lifecycle.

    Args:
        name: what lives it.
        sentences: what each state means.
        moves: where each event leads from each state.
    """

    __slots__ = ("moves", "name", "sentences")

    def __init__(self, name: str, sentences: dict[S, str], moves: dict[S, dict[str, S]]) -> None:
        self.name = name
        self.sentences = sentences
        self.moves = moves

    def next(self, state: S, event: str) -> S:
        """The state after ``event``."""
        target = self.moves[state].get(event)
        if target is None:
            raise InvariantError(f"a {self.name} that is {state.name} can not be {event}")
        return target

    def drawing(self) -> str:
        """The lifecycle as a Mermaid state diagram with its sentences."""
        lines = [f"# {self.name}", "", "```mermaid", "stateDiagram-v2"]
        for state, moves in self.moves.items():
            lines += [f"    {state.name} --> {target.name}: {event}" for event, target in moves.items()]
        lines += ["```", ""]
        lines += [f"- **{state.name}**: {text}" for state, text in self.sentences.items()]
        return "\n".join(lines) + "\n"
