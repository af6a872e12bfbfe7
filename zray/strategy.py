"""Strategies: which node a task or actor asks for, as users write it, and as it travels.

As it travels a strategy is plain data that can be hashed, since tasks of one strategy share leases:
``("default",)``, ``("spread",)``, ``("affinity", node_id, soft)``, ``("labels", hard, soft)`` or
``("bundle", placement_group_id, index)``. Conditions on labels are ``(key, operator, values)`` each. What the option
``label_selector`` asks for besides is a further last field; with no strategy it is ``("labels", hard, ())``.

The placement group in which a task or actor runs is known to its worker, so that what it submits itself can go there too
(``placed``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Condition = tuple[str, str, tuple[str, ...]]
Strategy = tuple[Any, ...]
Group = tuple[bytes, bool]  # a placement group, and whether what is submitted by those in it goes there too
DEFAULT: Strategy = ("default",)
_FORBIDDEN = frozenset("!(), ")


class PlacementGroupSchedulingStrategy:
    """Run in a bundle of a placement group.

    Args:
        placement_group: the group; None for no group, even if that of the parent would be taken else.
        placement_group_bundle_index: which bundle; -1 for any.
        placement_group_capture_child_tasks: whether what the task or actor submits itself goes into the group too, if it has no
            strategy of its own; by default what holds for its parent, and no in drivers.

    Raises:
        ValueError: an argument is not what it should be.

    Example:
        >>> f.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()  # doctest: +SKIP
    """

    def __init__(
        self,
        placement_group: Any,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        group_id = getattr(placement_group, "id", None)
        if placement_group is not None and (not isinstance(group_id, bytes) or not any(group_id)):
            raise ValueError(f"placement_group must be what placement_group() returned, or None, not {placement_group!r}")
        index = placement_group_bundle_index
        if not isinstance(index, int) or isinstance(index, bool) or index < -1:
            raise ValueError(f"placement_group_bundle_index must be an integer >= -1, not {index!r}")
        if placement_group is not None and index >= 0 and index >= placement_group.bundle_count:
            count = placement_group.bundle_count
            raise ValueError(f"the placement group has no bundle {index}: there are {count}, numbered from 0")
        if not isinstance(placement_group_capture_child_tasks, (bool, type(None))):
            raise ValueError(
                f"placement_group_capture_child_tasks must be a bool, not {placement_group_capture_child_tasks!r}"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    Args:
        node_id: in hexadecimal, as in ``zray.nodes()``.
        soft: whether another node will do when that one is gone or too small; else it fails.

    Raises:
        ValueError: an argument is not what it should be.
    """

    def __init__(self, node_id: str, soft: bool) -> None:
        given: Any = node_id
        text = given.hex() if isinstance(given, bytes) else given
        try:
            raw = bytes.fromhex(text)
        except (TypeError, ValueError):
            raw = b""
        if len(raw) != 16:
            raise ValueError(f"node_id must be the id of a node in hexadecimal, 32 digits, not {given!r}")
        if not isinstance(soft, bool):
            raise ValueError(f"soft must be a bool, not {soft!r}")
        self.node_id = text
        self.soft = soft


class _Operator:
    """What a label must be."""

    operator = ""

    def __init__(self, *values: str) -> None:
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{type(self).__name__}() takes strings, at least one, not {values!r}")
        self.values = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class In(_Operator):
    """The label is one of these values."""

    operator = "in"


class NotIn(_Operator):
    """The label is none of these values, or not there."""

    operator = "not_in"


class Exists(_Operator):
    """The label is there, whatever its value."""

    operator = "exists"

    def __init__(self) -> None:
        self.values = ()


class DoesNotExist(_Operator):
    """The label is not there."""

    operator = "does_not_exist"

    def __init__(self) -> None:
        self.values = ()


Expressions = Mapping[str, _Operator]


class NodeLabelSchedulingStrategy:
    """Run on a node with certain labels.

    Args:
        hard: what the labels must be: ``{"region": In("eu", "us"), "spot": DoesNotExist()}``.
        soft: what they should be, if a node with room has them.

    Raises:
        ValueError: there is nothing in either, or it is not what it should be.
    """

    def __init__(self, hard: Expressions, *, soft: Expressions | None = None) -> None:
        self.hard = _expressions("hard", hard)
        self.soft = _expressions("soft", soft)
        if not self.hard and not self.soft:
            raise ValueError("a NodeLabelSchedulingStrategy needs an expression in hard or soft")


SchedulingStrategy = (
    str | PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy | NodeLabelSchedulingStrategy | None
)


def _expressions(what: str, given: Any) -> dict[str, _Operator]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a dict of In, NotIn, Exists or DoesNotExist by label, not {given!r}")
    for key, expression in given.items():
        if not isinstance(key, str) or not key or not isinstance(expression, _Operator):
            raise ValueError(f"{what} must map names of labels to In, NotIn, Exists or DoesNotExist: {key!r}: {expression!r}")
    return dict(given)


def _conditions(expressions: Mapping[str, _Operator]) -> tuple[Condition, ...]:
    return tuple((key, one.operator, tuple(one.values)) for key, one in sorted(expressions.items()))


def read_selector(selector: Mapping[str, str] | None) -> tuple[Condition, ...]:
    """A label selector as conditions.

    Args:
        selector: ``"value"``, ``"!value"``, ``"in(a, b)"`` or ``"!in(a, b)"`` by label.

    Raises:
        ValueError: it can not be read; the text names the label.

    Example:
        >>> read_selector({"region": "in(eu, us)", "spot": "!true"})
        (('region', 'in', ('eu', 'us')), ('spot', 'not_in', ('true',)))
    """
    if selector is None:
        return ()
    if not isinstance(selector, Mapping):
        raise ValueError(f"a label selector is a dict of text by label, not {selector!r}")
    found: list[Condition] = []
    for key, text in selector.items():
        if not isinstance(key, str) or not key or not isinstance(text, str):
            raise ValueError(f"a label selector is a dict of text by label: {key!r}: {text!r}")
        negated = text.startswith("!")
        rest = text[1:] if negated else text
        listed = rest.startswith("in(") and rest.endswith(")")
        values = [value.strip() for value in rest[3:-1].split(",")] if listed else [rest]
        for value in values:
            if _FORBIDDEN & set(value) or (not value and (listed or negated)):
                raise ValueError(
                    f"the selector of label {key!r} must be 'value', '!value', 'in(a, b)' or '!in(a, b)', not {text!r}"
                )
        found.append((key, "not_in" if negated else "in", tuple(values)))
    return tuple(sorted(found))


def as_data(strategy: Any, label_selector: Mapping[str, str] | None = None) -> Strategy:
    """A strategy with a label selector, as it travels.

    Args:
        strategy: the option ``scheduling_strategy``: None, "DEFAULT", "SPREAD", or a strategy object.
        label_selector: the option of that name.

    Raises:
        ValueError: one of them is not what it should be.

    Example:
        >>> as_data("SPREAD")
        ('spread',)
    """
    selected = read_selector(label_selector)
    more = (selected,) if selected else ()
    if strategy is None or strategy == "DEFAULT":
        return ("labels", selected, ()) if selected else DEFAULT
    if strategy == "SPREAD":
        return ("spread", *more)
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return ("affinity", bytes.fromhex(strategy.node_id), strategy.soft, *more)
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        return ("labels", _conditions(strategy.hard) + selected, _conditions(strategy.soft))
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        if strategy.placement_group is None:
            return as_data(None, label_selector)
        return ("bundle", bytes(strategy.placement_group.id), strategy.placement_group_bundle_index, *more)
    raise ValueError(
        'option \'scheduling_strategy\' must be "DEFAULT", "SPREAD", or one of zray.util.scheduling_strategies, '
        f"not {strategy!r}"
    )


def strategy_of(options: Mapping[str, Any]) -> Strategy:
    """The strategy that the options of a task or actor ask for, as it travels.

    Raises:
        ValueError: an option is not what it should be, or two of them contradict each other.
    """
    strategy = options.get("scheduling_strategy")
    group = options.get("placement_group")
    if group is not None and group != "default":
        if strategy is not None:
            raise ValueError("options 'placement_group' and 'scheduling_strategy' can not both be given")
        index = options.get("placement_group_bundle_index")
        strategy = PlacementGroupSchedulingStrategy(group, -1 if index is None else index)
    return as_data(strategy, options.get("label_selector"))


def placed(options: Mapping[str, Any], parent: Group | None) -> tuple[Strategy, Group | None]:
    """The strategy of a task or actor as it travels, and the placement group that it will run in.

    Args:
        options: of the task or actor.
        parent: the placement group of the task or actor that submits it; one that captures takes in what has no strategy.

    Raises:
        ValueError: an option is not what it should be, or two of them contradict each other.
    """
    strategy = strategy_of(options)
    chosen = options.get("scheduling_strategy")
    captures = options.get("placement_group_capture_child_tasks")
    if isinstance(chosen, PlacementGroupSchedulingStrategy):
        captures = chosen.placement_group_capture_child_tasks
    if captures is None:
        captures = parent is not None and parent[1]
    undecided = chosen is None and options.get("placement_group", "default") == "default"
    if parent is not None and captures and undecided:
        selected = read_selector(options.get("label_selector"))
        strategy = ("bundle", parent[0], -1, *((selected,) if selected else ()))
    return strategy, (strategy[1], captures) if strategy[0] == "bundle" else None
