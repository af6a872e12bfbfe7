"""Arena: the free list of shared memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.core.arena import PAGE, Arena
from zray.exceptions import InvariantError


def test_sizes_are_rounded_up_to_pages_and_nothing_is_smaller_than_one() -> None:
    arena = Arena(4 * PAGE + 5)
    assert arena.capacity == 4 * PAGE
    assert arena.allocate(0) == (0, False)
    assert arena.allocate(PAGE + 1) == (PAGE, False)
    assert arena.used_bytes == 3 * PAGE
    arena.check()


def test_a_full_arena_says_none_and_changes_nothing() -> None:
    arena = Arena(2 * PAGE)
    assert arena.allocate(3 * PAGE) is None
    assert arena.allocate(2 * PAGE) == (0, False)
    assert arena.allocate(1) is None
    arena.check()
    assert Arena(100).allocate(1) is None


def test_warm_room_is_used_before_cold_room() -> None:
    arena = Arena(8 * PAGE)
    first = arena.allocate(2 * PAGE)
    assert first is not None
    arena.free(first[0], warm=True)
    assert arena.allocate(PAGE) == (0, True)
    assert arena.allocate(2 * PAGE) == (2 * PAGE, False), "one warm page is left, which is too small"
    assert arena.allocate(PAGE) == (PAGE, True)
    arena.check()


def test_room_that_was_not_written_comes_back_cold() -> None:
    arena = Arena(2 * PAGE)
    arena.allocate(PAGE)
    arena.free(0, warm=False)
    assert arena.statistics()["extents"] == 1
    assert arena.allocate(2 * PAGE) == (0, False)


def test_the_tightest_extent_that_fits_is_taken() -> None:
    arena = Arena(10 * PAGE)
    places = [arena.allocate(n * PAGE) for n in (3, 1, 2, 1, 3)]
    for index in (0, 2, 4):
        place = places[index]
        assert place is not None
        arena.free(place[0], warm=True)
    assert arena.allocate(2 * PAGE) == (4 * PAGE, True)
    arena.check()


def test_neighbours_of_one_temperature_are_joined() -> None:
    arena = Arena(6 * PAGE)
    for _ in range(6):
        arena.allocate(PAGE)
    for index in (1, 3, 2):
        arena.free(index * PAGE, warm=True)
        arena.check()
    assert arena.statistics()["extents"] == 1 and arena.statistics()["largest_free_bytes"] == 3 * PAGE


def test_neighbours_of_different_temperature_are_taken_together_as_cold() -> None:
    arena = Arena(6 * PAGE)
    for _ in range(3):
        arena.allocate(PAGE)
    arena.free(PAGE, warm=True)
    arena.free(2 * PAGE, warm=True)
    assert arena.allocate(5 * PAGE) == (PAGE, False)
    arena.check()


def test_neighbours_that_are_apart_are_never_joined() -> None:
    arena = Arena(3 * PAGE)
    for _ in range(3):
        arena.allocate(PAGE)
    arena.free(0, warm=True)
    arena.free(2 * PAGE, warm=False)
    assert arena.allocate(2 * PAGE) is None
    arena.check()


def test_check_sees_a_hole_and_an_overlap() -> None:
    arena = Arena(4 * PAGE)
    arena.allocate(PAGE)
    arena._free[0] = (2 * PAGE, 2 * PAGE, False)
    with pytest.raises(InvariantError, match="hole or an overlap"):
        arena.check()


@given(st.integers(1, 24), st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.booleans()), max_size=60))
def test_random_walk_against_a_map_of_pages(pages: int, steps: list[tuple[bool, int, bool]]) -> None:
    """The model is one letter per page: used, warm or cold."""
    arena = Arena(pages * PAGE)
    model = ["cold"] * pages
    places: list[tuple[int, int]] = []
    for allocate, amount, warm in steps:
        if allocate:
            count = max(1, amount % 9)
            place = arena.allocate(count * PAGE - amount % 3)
            runs = "".join("u" if page == "used" else "f" for page in model).split("u")
            assert (place is None) == (max(map(len, runs)) < count), "room is found whenever there is some in one piece"
            if place is not None:
                start = place[0] // PAGE
                part = model[start : start + count]
                assert "used" not in part and len(part) == count
                if place[1]:
                    assert part == ["warm"] * count, "warm is only said of pages that were all written"
                model[start : start + count] = ["used"] * count
                places.append((start, count))
        elif places:
            start, count = places.pop(amount % len(places))
            arena.free(start * PAGE, warm=warm)
            model[start : start + count] = ["warm" if warm else "cold"] * count
        arena.check()
        assert arena.used_bytes == model.count("used") * PAGE
    for start, _ in places:
        arena.free(start * PAGE, warm=True)
    arena.check()
    assert arena.used_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60), st.integers(1, 20))
def test_what_lies_together_is_measured_across_temperatures(steps: list[tuple[int, bool]], pages: int) -> None:
    arena = Arena(20 * PAGE)
    used: list[int] = []
    for choice, warm in steps:
        if choice < 3 or not used:
            place = arena.allocate((choice + 1) * PAGE)
            used += [place[0]] if place is not None else []
            continue
        offset = used.pop(choice % len(used))
        arena.free(offset, warm=warm)
        taken = [page for start, size in arena._used.items() for page in range(start // PAGE, (start + size) // PAGE)]
        here = offset // PAGE
        first = max([page + 1 for page in taken if page < here], default=0)
        last = min([page for page in taken if page > here], default=20)
        assert arena.reaches(offset, pages * PAGE) == (last - first >= pages)
        arena.check()
