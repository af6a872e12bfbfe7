"""Strategies: from what users write to plain data, and what is wrong with the rest."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from zray import options, strategy
from zray.base.ids import PlacementGroupID
from zray.core import policy, views
from zray.placement_group import PlacementGroup, _bundles, get_placement_group, placement_group, remove_placement_group
from zray.strategy import as_data, placed, read_selector, strategy_of
from zray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

NODE = bytes(range(16))
GROUP = PlacementGroup(PlacementGroupID(b"group-----------"), [{"CPU": 1}, {"CPU": 2}])
X = (("zone", "in", ("x",)),)
HARD = {"zone": In("x", "y"), "spot": DoesNotExist(), "disk": NotIn("hdd"), "rack": Exists()}
HARD_DATA = (
    ("disk", "not_in", ("hdd",)),
    ("rack", "exists", ()),
    ("spot", "does_not_exist", ()),
    ("zone", "in", ("x", "y")),
)

AS_DATA = [
    (None, None, ("default",)),
    ("DEFAULT", {}, ("default",)),
    ("SPREAD", None, ("spread",)),
    (NodeAffinitySchedulingStrategy(NODE.hex(), soft=False), None, ("affinity", NODE, False)),
    (NodeAffinitySchedulingStrategy(NODE.hex(), True), None, ("affinity", NODE, True)),
    (NodeLabelSchedulingStrategy(HARD, soft={"cpu": In("fast")}), None, ("labels", HARD_DATA, (("cpu", "in", ("fast",)),))),
    (NodeLabelSchedulingStrategy({}, soft={"cpu": Exists()}), None, ("labels", (), (("cpu", "exists", ()),))),
    (PlacementGroupSchedulingStrategy(GROUP), None, ("bundle", bytes(GROUP.id), -1)),
    (PlacementGroupSchedulingStrategy(GROUP, 1), None, ("bundle", bytes(GROUP.id), 1)),
    (PlacementGroupSchedulingStrategy(None), None, ("default",)),
    (None, {"zone": "x"}, ("labels", X, ())),
    ("SPREAD", {"zone": "x"}, ("spread", X)),
    (NodeAffinitySchedulingStrategy(NODE.hex(), True), {"zone": "x"}, ("affinity", NODE, True, X)),
    (NodeLabelSchedulingStrategy({"rack": Exists()}), {"zone": "x"}, ("labels", (("rack", "exists", ()), *X), ())),
    (PlacementGroupSchedulingStrategy(GROUP, 0), {"zone": "x"}, ("bundle", bytes(GROUP.id), 0, X)),
]


@pytest.mark.parametrize(("given", "selector", "data"), AS_DATA)
def test_strategies_as_data(given: Any, selector: Any, data: Any) -> None:
    found = as_data(given, selector)
    assert found == data and hash(found) == hash(data)
    assert type(found[1]) is not PlacementGroupID if len(found) > 1 else True, "agents admit no classes"
    assert policy.conditions_of(found) == (data[1] if data[0] == "labels" else data[-1] if selector else ())


def test_both_sides_mean_the_same() -> None:
    operators = tuple(one.operator for one in (In, NotIn, Exists, DoesNotExist))
    assert operators == views.OPERATORS and strategy.DEFAULT == policy.DEFAULT


SELECTORS = [
    ("x", ("in", ("x",))),
    ("", ("in", ("",))),
    ("!x", ("not_in", ("x",))),
    ("in(x)", ("in", ("x",))),
    ("in(x,y)", ("in", ("x", "y"))),
    ("in( x , y-1.2_z )", ("in", ("x", "y-1.2_z"))),
    ("!in(x,y)", ("not_in", ("x", "y"))),
    ("inside", ("in", ("inside",))),
]


@pytest.mark.parametrize(("text", "expected"), SELECTORS)
def test_selectors(text: str, expected: Any) -> None:
    assert read_selector({"zone": text}) == (("zone", *expected),)


@pytest.mark.parametrize("text", ["!", "!!x", "in()", "in(x,)", "in(x", "in x", "!in()", "x,y", "not(x)", "in(in(x))"])
def test_selectors_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="the selector of label 'zone' must be 'value', '!value', 'in"):
        read_selector({"zone": text})


def test_selectors_do_not_depend_on_their_order() -> None:
    assert read_selector({"b": "1", "a": "2"}) == read_selector({"a": "2", "b": "1"})


MISTAKES = [
    (lambda: as_data("FASTEST"), "option 'scheduling_strategy' must be \"DEFAULT\", \"SPREAD\", or one of"),
    (lambda: as_data(7), "not 7"),
    (lambda: as_data(None, {"zone": 1}), "a label selector is a dict of text by label: 'zone': 1"),
    (lambda: as_data(None, {"": "x"}), "a label selector is a dict of text by label: '': 'x'"),
    (lambda: as_data(None, "zone"), "a label selector is a dict of text by label, not 'zone'"),  # type: ignore[arg-type]
    (lambda: NodeAffinitySchedulingStrategy("xyz", True), "must be the id of a node in hexadecimal, 32 digits, not 'xyz'"),
    (lambda: NodeAffinitySchedulingStrategy("00", True), "32 digits"),
    (lambda: NodeAffinitySchedulingStrategy(None, True), "32 digits"),  # type: ignore[arg-type]
    (lambda: NodeAffinitySchedulingStrategy(NODE.hex(), 1), "soft must be a bool, not 1"),  # type: ignore[arg-type]
    (In, r"In\(\) takes strings, at least one"),
    (lambda: NotIn(3), r"NotIn\(\) takes strings"),  # type: ignore[arg-type]
    (lambda: NodeLabelSchedulingStrategy({}), "needs an expression in hard or soft"),
    (lambda: NodeLabelSchedulingStrategy({"zone": "x"}), "hard must map names of labels to In, NotIn"),  # type: ignore[dict-item]
    (lambda: NodeLabelSchedulingStrategy({}, soft=[In("x")]), "soft must be a dict of In"),  # type: ignore[arg-type]
    (lambda: PlacementGroupSchedulingStrategy(7), r"must be what placement_group\(\) returned, or None, not 7"),
    (lambda: PlacementGroupSchedulingStrategy(PlacementGroup.empty()), r"must be what placement_group\(\) returned"),
    (lambda: PlacementGroupSchedulingStrategy(GROUP, 2), "has no bundle 2: there are 2, numbered from 0"),
    (lambda: PlacementGroupSchedulingStrategy(GROUP, -2), "an integer >= -1, not -2"),
    (lambda: PlacementGroupSchedulingStrategy(GROUP, True), "an integer >= -1, not True"),
    (lambda: PlacementGroupSchedulingStrategy(GROUP, 0, "yes"), "capture_child_tasks must be a bool, not 'yes'"),  # type: ignore[arg-type]
    (lambda: placement_group([]), "bundles must be a list of dicts"),
    (lambda: placement_group({"CPU": 1}), "bundles must be a list of dicts"),  # type: ignore[arg-type]
    (lambda: placement_group([{"CPU": 1}, {}]), "bundle 1 holds nothing"),
    (lambda: placement_group([{"CPU": 0}]), "bundle 0 holds nothing"),
    (lambda: placement_group([{"CPU": -1}]), "bundle 0 is {'CPU': -1}: a resource amount cannot be negative"),
    (lambda: placement_group([{"CPU": "1"}]), "bundle 0 is {'CPU': '1'}: "),  # type: ignore[dict-item]
    (lambda: placement_group([{1: 1}]), "bundle 0 must be a dict"),  # type: ignore[dict-item]
    (lambda: placement_group([{"GPU": 1.5}]), "bundle 0 asks for 1.5 GPUs: more than one are had whole only"),
    (lambda: placement_group([{"CPU": 1}], "TIGHT"), "strategy must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
    (lambda: placement_group([{"CPU": 1}], name=3), "must be a string, not 3"),  # type: ignore[arg-type]
    (lambda: placement_group([{"CPU": 1}], lifetime="long"), "lifetime must be None or \"detached\", not 'long'"),
    (lambda: placement_group([{"CPU": 1}], bundle_label_selector=[{}, {}]), "one for each of 1 bundles, not 2"),
    (lambda: remove_placement_group(None), "takes a placement group, not None"),  # type: ignore[arg-type]
    (lambda: get_placement_group(""), "must be a string that is not empty"),
    (lambda: options.check_task_options({"scheduling_strategy": object()}), "option 'scheduling_strategy' must be"),
    (lambda: options.check_actor_options({"label_selector": {"zone": "in("}}), "the selector of label 'zone'"),
    (lambda: options.check_task_options({"placement_group": 7}), r"must be what placement_group\(\) returned, or None, not 7"),
    (
        lambda: options.check_task_options({"placement_group": GROUP, "scheduling_strategy": "SPREAD"}),
        "can not both be given",
    ),
]


@pytest.mark.parametrize(("mistake", "text"), MISTAKES)
def test_mistakes_are_told_where_they_are_made(mistake: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mistake()


def test_the_way_before_there_were_strategies() -> None:
    assert strategy_of({"placement_group": GROUP, "placement_group_bundle_index": 1}) == ("bundle", bytes(GROUP.id), 1)
    assert strategy_of({"placement_group": GROUP}) == ("bundle", bytes(GROUP.id), -1)
    assert strategy_of({"placement_group": "default", "scheduling_strategy": "SPREAD"}) == ("spread",)
    assert strategy_of({}) == ("default",)


G, P = bytes(GROUP.id), b"parents-group---"
INSIDE, HERE, CAPTURED = PlacementGroupSchedulingStrategy(GROUP, 1), ("bundle", G, 1), ("bundle", P, -1)
YES, NO = (PlacementGroupSchedulingStrategy(GROUP, 1, captures) for captures in (True, False))
PLACED = [
    # options, the group of the parent and whether it captures -> the strategy, and the group it will be in
    ({}, None, ("default",), None),
    ({}, (P, False), ("default",), None),
    ({}, (P, True), CAPTURED, (P, True)),
    ({"num_cpus": 2, "label_selector": {"zone": "x"}}, (P, True), (*CAPTURED, X), (P, True)),
    ({"scheduling_strategy": "DEFAULT"}, (P, True), ("default",), None),
    ({"scheduling_strategy": "SPREAD"}, (P, True), ("spread",), None),
    ({"scheduling_strategy": NodeAffinitySchedulingStrategy(NODE.hex(), True)}, (P, True), ("affinity", NODE, True), None),
    ({"scheduling_strategy": PlacementGroupSchedulingStrategy(None)}, (P, True), ("default",), None),
    ({"placement_group": None}, (P, True), ("default",), None),
    ({"placement_group": "default"}, (P, True), CAPTURED, (P, True)),
    ({"placement_group_capture_child_tasks": False}, (P, True), ("default",), None),
    ({"placement_group_capture_child_tasks": True}, (P, False), CAPTURED, (P, True)),
    ({"placement_group_capture_child_tasks": True}, None, ("default",), None),
    ({"scheduling_strategy": INSIDE}, None, HERE, (G, False)),
    ({"scheduling_strategy": INSIDE}, (P, True), HERE, (G, True)),  # what holds for the parent
    ({"scheduling_strategy": YES}, None, HERE, (G, True)),
    ({"scheduling_strategy": NO}, (P, True), HERE, (G, False)),
    ({"placement_group": GROUP, "placement_group_bundle_index": 1}, (P, False), HERE, (G, False)),
    ({"placement_group": GROUP, "placement_group_capture_child_tasks": True}, None, ("bundle", G, -1), (G, True)),
]


@pytest.mark.parametrize(("chosen", "parent", "strategy", "group"), PLACED)
def test_where_a_task_goes_that_was_submitted_in_a_placement_group(
    chosen: Any, parent: Any, strategy: Any, group: Any
) -> None:
    options.check_task_options(chosen)
    assert placed(chosen, parent) == (strategy, group)


def test_a_group_is_a_value() -> None:
    again = pickle.loads(pickle.dumps(GROUP))
    assert again == GROUP and hash(again) == hash(GROUP) and again != PlacementGroup.empty()
    assert again.bundle_specs == [{"CPU": 1}, {"CPU": 2}] and again.bundle_count == 2
    assert repr(GROUP) == f"PlacementGroup({b'group-----------'.hex()})"
    assert PlacementGroup.empty().is_empty and not GROUP.is_empty


def test_bundles_in_units() -> None:
    assert [dict(bundle) for bundle in _bundles([{"CPU": 0.5, "GPU": 0}, {"GPU": 2}])] == [{"CPU": 5000}, {"GPU": 20_000}]


def test_what_labels_must_be_can_be_read() -> None:
    assert repr(HARD) == "{'zone': In('x', 'y'), 'spot': DoesNotExist(), 'disk': NotIn('hdd'), 'rack': Exists()}"
