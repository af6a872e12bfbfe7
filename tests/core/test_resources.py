"""Resources: exact arithmetic in integer units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.resources import NodeResources, ResourceSet, from_units, to_units


def test_tenths_add_up_exactly() -> None:
    node = NodeResources(ResourceSet.of({"CPU": 0.3}))
    tenth = ResourceSet.of({"CPU": 0.1})
    for _ in range(3):
        assert node.fits(tenth)
        node.acquire(tenth)
    assert node.available["CPU"] == 0 and not node.fits(tenth)
    for _ in range(3):
        node.release(tenth)
    assert node.available == dict(node.total)


@pytest.mark.parametrize("amount", [-1, -0.5, 0.00001, 0.12345, float("inf"), float("nan")])
def test_amounts_that_make_no_sense_are_refused(amount: float) -> None:
    with pytest.raises(ValueError):
        to_units(amount)


@given(st.integers(min_value=0, max_value=10**12))
def test_units_and_amounts_are_each_others_inverse(units: int) -> None:
    assert to_units(from_units(units)) == units


def test_a_set_ignores_order_and_zeros() -> None:
    one = ResourceSet.of({"CPU": 1, "GPU": 0, "disk": 2})
    other = ResourceSet.of({"disk": 2, "CPU": 1})
    assert one == other and hash(one) == hash(other) and list(one) == ["CPU", "disk"]
    assert one["GPU"] == 0 and len(one) == 2
    assert one != {"CPU": 10_000, "disk": 20_000}, "a plain dict has no unit"


def test_the_parts_of_a_set_can_be_taken() -> None:
    whole = ResourceSet.of({"CPU": 1, "GPU": 2})
    assert whole.only("CPU") == ResourceSet.of({"CPU": 1})
    assert whole.only("TPU") == ResourceSet({})
    assert whole.amounts() == {"CPU": 1.0, "GPU": 2.0}
    assert repr(whole) == "{CPU: 1, GPU: 2}"


def test_sets_are_added_and_compared() -> None:
    one, other = ResourceSet.of({"CPU": 1, "GPU": 1}), ResourceSet.of({"CPU": 2, "disk": 1})
    assert one.plus(other) == ResourceSet.of({"CPU": 3, "GPU": 1, "disk": 1})
    assert other.minus(one) == ResourceSet({"CPU": 10_000, "GPU": -10_000, "disk": 10_000}), "what is missing is below zero"
    assert one.minus(one) == ResourceSet({})
    assert one.plus(other).covers(one) and not one.covers(other) and one.covers(ResourceSet({}))


def test_what_can_never_fit_is_told_apart_from_what_does_not_fit_now() -> None:
    node = NodeResources(ResourceSet.of({"CPU": 2}))
    node.acquire(ResourceSet.of({"CPU": 2}))
    small, large, alien = (ResourceSet.of(a) for a in ({"CPU": 1}, {"CPU": 3}, {"GPU": 1}))
    assert node.could_ever_fit(small) and not node.fits(small)
    assert not node.could_ever_fit(large) and not node.could_ever_fit(alien)
    assert node.shortfall(large) == {"CPU": (3.0, 2.0)} and node.shortfall(alien) == {"GPU": (1.0, 0.0)}
    assert node.fits(ResourceSet({})), "a demand of nothing always fits"


def test_available_may_go_below_zero_and_comes_back() -> None:
    node = NodeResources(ResourceSet.of({"CPU": 1}))
    one = ResourceSet.of({"CPU": 1})
    node.acquire(one)
    node.acquire(one)
    assert node.available["CPU"] == -10_000 and not node.fits(one)
    node.release(one)
    assert not node.fits(one)
    node.release(one)
    assert node.fits(one)
