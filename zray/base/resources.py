"""Resources: what a node offers and what a task demands.

Amounts are integers in units of 1/10000, so that fractions add up exactly: three times 0.1 CPU and back again is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite

UNIT = 10_000


def to_units(amount: float) -> int:
    """An amount as users write it (CPUs, GPUs, bytes) in integer units.

    Raises:
        ValueError: for an amount that is negative, not finite, or finer than 1/10000.
    """
    if not isfinite(amount):
        raise ValueError(f"a resource amount must be a finite number: {amount}")
    units = round(amount * UNIT)
    if units < 0:
        raise ValueError(f"a resource amount cannot be negative: {amount}")
    if abs(units - amount * UNIT) > 1e-3 * max(1.0, abs(amount)):
        raise ValueError(f"a resource amount has at most four decimals: {amount}")
    return units


def from_units(units: int) -> float:
    """The amount as users read it."""
    return units / UNIT


class ResourceSet(Mapping[str, int]):
    """An immutable, hashable bag of named amounts in units; zero amounts are left out.

    Example:
        >>> ResourceSet.of({"CPU": 0.5})["CPU"]
        5000
    """

    __slots__ = ("_hash", "_items")

    def __init__(self, units: Mapping[str, int]) -> None:
        self._items = {name: units[name] for name in sorted(units) if units[name]}
        self._hash = hash(tuple(self._items.items()))

    @classmethod
    def of(cls, amounts: Mapping[str, float]) -> ResourceSet:
        return cls({name: to_units(amount) for name, amount in amounts.items()})

    def __getitem__(self, name: str) -> int:
        return self._items.get(name, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResourceSet) and self._items == other._items

    def amounts(self) -> dict[str, float]:
        return {name: from_units(units) for name, units in self._items.items()}

    def only(self, *names: str) -> ResourceSet:
        """The part of it that is called one of ``names``."""
        return ResourceSet({name: self[name] for name in names})

    def covers(self, demand: ResourceSet) -> bool:
        """Whether there is as much of everything as ``demand`` asks for."""
        mine = self._items
        return all(mine.get(name, 0) >= units for name, units in demand._items.items())

    def plus(self, other: ResourceSet) -> ResourceSet:
        return ResourceSet({name: self[name] + other[name] for name in {**self._items, **other._items}})

    def minus(self, other: ResourceSet) -> ResourceSet:
        """What is left without ``other``; below zero where that is more."""
        return ResourceSet({name: self[name] - other[name] for name in {**self._items, **other._items}})

    def least(self, other: ResourceSet) -> ResourceSet:
        """Of each resource what the one of both has that has less."""
        return ResourceSet({name: min(self[name], other[name]) for name in {**self._items, **other._items}})

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in self.amounts().items()) + "}"


class NodeResources:
    """What one node has in all and what of it is free.

    ``available`` may go below zero: a worker that wakes from a blocked ``get`` takes its CPU back at once, although it
    was lent out meanwhile.
    """

    __slots__ = ("available", "total")

    def __init__(self, total: ResourceSet) -> None:
        self.total = total
        self.available: dict[str, int] = dict(total)

    def could_ever_fit(self, demand: ResourceSet) -> bool:
        return all(self.total[name] >= demand[name] for name in demand)

    def fits(self, demand: ResourceSet) -> bool:
        available = self.available
        return all(available.get(name, 0) >= demand[name] for name in demand)

    def acquire(self, demand: ResourceSet) -> None:
        for name in demand:
            self.available[name] = self.available.get(name, 0) - demand[name]

    def release(self, demand: ResourceSet) -> None:
        for name in demand:
            self.available[name] = self.available.get(name, 0) + demand[name]

    def shortfall(self, demand: ResourceSet) -> dict[str, tuple[float, float]]:
        """For each resource that can never fit: what is asked for and what the node has in all."""
        return {
            name: (from_units(demand[name]), from_units(self.total[name]))
            for name in demand
            if self.total[name] < demand[name]
        }
