"""ReferenceCounter: an object is kept exactly as long as somebody needs it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.wire import Address
from zray.core.references import ReferenceCounter
from zray.exceptions import InvariantError

from .reading import address, process

ME, OTHER, THIRD = address("me"), address("other"), address("third")
A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))


def counter() -> ReferenceCounter:
    return ReferenceCounter(ME)


def deltas(references: ReferenceCounter) -> dict[Address, list[Any]]:
    taken, references.deltas = references.deltas, {}
    return taken


# -- needs inside the process ---------------------------------------------------------------------------------------


def test_an_owned_object_is_freed_with_its_last_local_need() -> None:
    r = counter()
    r.own(A)
    r.hold(A, ME)
    r.release(A)
    r.check()
    assert r.freed == [] and r.needed(A)
    r.release(A)
    r.check()
    assert r.freed == [A] and not r.needed(A)


def test_releasing_what_is_unknown_changes_nothing() -> None:
    r = counter()
    r.release(A)
    r.check()
    assert r.freed == [] == r.dropped and r.statistics()["counted"] == 0


def test_a_borrowed_object_is_dropped_not_freed() -> None:
    r = counter()
    r.hold(A, OTHER)
    assert r.owners == {A: OTHER}
    r.release(A)
    r.check()
    assert r.dropped == [A] and r.freed == [] and r.owners == {}


# -- registrations --------------------------------------------------------------------------------------------------


def test_a_receiver_gives_back_exactly_as_often_as_it_was_registered() -> None:
    r = counter()
    r.hold(A, OTHER)
    r.received(A)
    r.hold(A, OTHER)
    r.received(A)
    r.release(A)
    assert deltas(r) == {}
    r.release(A)
    assert deltas(r) == {OTHER: [(A, ME[0], -2)]}
    r.check()


def test_a_receiver_that_was_never_registered_says_nothing() -> None:
    r = counter()
    r.hold(A, OTHER)  # an argument: its submitter keeps it
    r.release(A)
    assert deltas(r) == {}


def test_the_giver_registers_the_receiver_at_the_owner_before_its_own_release() -> None:
    r = counter()
    r.hold(A, OTHER)
    r.received(A)
    r.give(A, OTHER, THIRD[0])
    r.release(A)
    assert deltas(r) == {OTHER: [(A, THIRD[0], 1), (A, ME[0], -1)]}


def test_an_owner_that_gives_registers_at_itself_and_an_owner_that_receives_needs_none() -> None:
    r = counter()
    r.own(A)
    r.give(A, ME, OTHER[0])
    assert r.borrowers == {A: {OTHER[0]: 1}} and deltas(r) == {}
    r.hold(B, OTHER)
    r.give(B, OTHER, OTHER[0])
    assert deltas(r) == {}


def test_what_an_owner_gives_to_itself_is_held_on_its_way() -> None:
    r = counter()
    r.own(A)
    r.give(A, ME, ME[0])
    r.release(A)
    assert r.needed(A) and r.borrowers == {}
    r.come_home(((A, ME), (B, OTHER)))  # it has arrived
    r.check()
    assert r.freed == [A]


def test_what_comes_home_to_its_owner_is_not_a_registration() -> None:
    r = counter()
    r.own(A)
    r.own(B)
    r.contain(B, ((A, ME),), received=True)
    assert r.handed == {}
    r.check()


def test_who_makes_a_reference_by_hand_registers_itself_and_gives_back_what_it_registered() -> None:
    r = counter()
    r.borrow(A, OTHER)
    r.borrow(A, OTHER)
    assert deltas(r) == {OTHER: [(A, ME[0], 1), (A, ME[0], 1)]}
    r.release(A)
    assert deltas(r) == {} and r.needed(A)
    r.release(A)
    r.check()
    assert deltas(r) == {OTHER: [(A, ME[0], -2)]} and r.dropped == [A]


def test_a_reference_by_hand_that_lives_shorter_than_a_turn_still_registers_before_it_gives_back() -> None:
    r = counter()
    r.borrow(A, OTHER)
    r.release(A)
    assert deltas(r) == {OTHER: [(A, ME[0], 1), (A, ME[0], -1)]}


def test_a_reference_by_hand_needs_no_submitter_to_protect_it() -> None:
    """It came as an argument before, and its submitter kept it only until the task was done."""
    r = counter()
    r.hold(A, OTHER)
    r.borrow(A, OTHER)
    r.give(A, OTHER, THIRD[0])
    assert r.passed == {}, "this process is registered itself"
    r.release(A)
    r.release(A)
    assert r.kept({A: OTHER}) == []
    assert deltas(r) == {OTHER: [(A, ME[0], 1), (A, THIRD[0], 1), (A, ME[0], -1)]}


def test_a_reference_by_hand_to_ones_own_object_is_one_need_more() -> None:
    r = counter()
    r.own(A)
    r.borrow(A, ME)
    r.release(A)
    assert r.freed == [] and deltas(r) == {}
    r.release(A)
    r.check()
    assert r.freed == [A]


def test_an_argument_is_registered_when_somebody_dies_who_may_have_protected_it() -> None:
    """An actor outlives those who call it, and may have kept what they gave."""
    r = counter()
    r.hold(A, OTHER)
    r.own(C)
    r.contain(C, ((B, THIRD),), received=True)
    r.give(A, OTHER, THIRD[0])
    r.on_process_died(process("caller"))
    r.on_process_died(process("caller"))
    r.check()
    assert deltas(r) == {OTHER: [(A, THIRD[0], 1), (A, ME[0], 1)]}
    assert r.kept({A: OTHER}) == [(A, OTHER)], "if the caller lives, it registers once more"
    r.release(A)
    assert deltas(r) == {OTHER: [(A, ME[0], -2)]}


# -- borrowers ------------------------------------------------------------------------------------------------------


def test_a_lent_object_outlives_the_needs_of_its_owner() -> None:
    r = counter()
    r.own(A)
    r.give(A, ME, OTHER[0])
    r.release(A)
    r.check()
    assert r.freed == []
    r.on_refs([(A, OTHER[0], -1)])
    r.check()
    assert r.freed == [A]


def test_a_release_may_overtake_its_registration_while_another_keeps_the_object() -> None:
    r = counter()
    r.own(A)
    r.give(A, ME, OTHER[0])
    r.release(A)
    r.on_refs([(A, THIRD[0], -1)])  # the third one is done already
    r.check()
    assert r.freed == []
    r.on_refs([(A, THIRD[0], 1), (A, OTHER[0], -1)])  # now its giver's word arrives, and the giver's own end
    r.check()
    assert r.freed == [A]


def test_a_release_whose_registration_died_with_its_giver_does_not_keep_the_object_for_ever() -> None:
    r = counter()
    r.own(A)
    r.on_refs([(A, OTHER[0], 1)])
    r.on_refs([(A, THIRD[0], -1)])  # registered by OTHER, whose word was lost with it
    r.on_process_died(OTHER[0])
    r.check()
    assert r.freed == []
    r.release(A)
    r.check()
    assert r.freed == [A]


def test_stale_words_about_a_freed_object_are_ignored() -> None:
    r = counter()
    r.on_refs([(A, OTHER[0], 1)])
    r.check()
    assert not r.needed(A)


def test_the_borrowings_of_a_dead_process_end_with_it() -> None:
    r = counter()
    r.own(A)
    r.on_refs([(A, OTHER[0], 1), (A, OTHER[0], 1)])
    r.release(A)
    assert r.on_process_died(OTHER[0]) == []
    r.check()
    assert r.freed == [A]


def test_the_death_of_an_owner_names_what_it_owned() -> None:
    r = counter()
    r.hold(A, OTHER)
    r.hold(B, THIRD)
    assert r.on_process_died(OTHER[0]) == [A]
    r.release(A)
    r.check()


@pytest.mark.parametrize("delta", [1, -1])
def test_a_borrower_is_to_be_watched_each_time_it_is_met_anew(delta: int) -> None:
    r = counter()
    r.own(A)
    r.give(A, ME, OTHER[0])
    r.give(A, ME, OTHER[0])
    assert r.met == [OTHER[0]]
    r.on_process_died(OTHER[0])
    r.on_refs([(A, OTHER[0], delta)])  # it was on its way when the process died, and nobody would ever take it back
    assert r.met == [OTHER[0], OTHER[0]]
    r.on_process_died(OTHER[0])
    r.check()
    r.release(A)
    assert r.freed == [A]


# -- containment ----------------------------------------------------------------------------------------------------


def test_a_value_holds_what_is_inside_for_as_long_as_it_is_kept() -> None:
    r = counter()
    r.own(A)
    r.own(B)
    r.contain(B, ((A, ME),), received=False)
    r.release(A)
    r.check()
    assert r.freed == []
    r.release(B)
    r.check()
    assert r.freed == [B, A]


def test_a_lent_container_holds_its_contents_though_nobody_here_needs_it() -> None:
    r = counter()
    r.own(A)
    r.own(B)
    r.contain(B, ((A, ME),), received=False)
    r.give(B, ME, OTHER[0])
    r.release(A)
    r.release(B)
    r.check()
    assert r.freed == []
    r.on_refs([(B, OTHER[0], -1)])
    r.check()
    assert r.freed == [B, A]


def test_a_chain_of_containers_is_freed_without_recursion() -> None:
    r = counter()
    ids = [n.to_bytes(20, "big") for n in range(5000)]
    for n, object_id in enumerate(ids):
        r.own(object_id)
        if n:
            r.contain(object_id, ((ids[n - 1], ME),), received=False)
            r.release(ids[n - 1])
    r.release(ids[-1])
    r.check()
    assert len(r.freed) == 5000 and r.counts == {}


def test_a_container_inside_a_container_keeps_what_is_lent() -> None:
    r = counter()
    for object_id in (A, B, C):
        r.own(object_id)
    r.contain(B, ((A, ME),), received=False)
    r.contain(C, ((B, ME),), received=False)
    r.give(B, ME, OTHER[0])
    for object_id in (A, B, C):
        r.release(object_id)
    r.check()
    assert r.freed == [C], "B is lent and holds A"
    r.on_refs([(B, OTHER[0], -1)])
    r.check()
    assert r.freed == [C, B, A]


def test_a_value_that_nobody_wants_gives_the_registrations_back() -> None:
    r = counter()
    r.decline(((A, OTHER), (B, OTHER)))
    assert deltas(r) == {OTHER: [(A, ME[0], -1), (B, ME[0], -1)]}
    assert r.counts == {}
    r.check()


def test_declining_what_is_held_anyway_keeps_it_and_its_count() -> None:
    r = counter()
    r.hold(A, OTHER)
    r.decline(((A, OTHER),))
    assert r.counts == {A: 1} and r.handed == {A: 1}
    r.release(A)
    assert deltas(r) == {OTHER: [(A, ME[0], -1)]}


# -- arguments passed on --------------------------------------------------------------------------------------------


def test_an_argument_that_was_passed_on_is_reported_though_it_is_not_held_any_more() -> None:
    """Its submitter must stay the protector until the word about the next borrower is at the owner."""
    r = counter()
    r.hold(A, OTHER)  # came with a task's arguments
    r.give(A, OTHER, THIRD[0])  # and was passed on to a child of the task
    r.release(A)
    assert r.kept({A: OTHER}) == [(A, OTHER)]
    assert deltas(r) == {OTHER: [(A, THIRD[0], 1), (A, ME[0], -1)]}, "the release comes after the registration"
    assert r.kept({A: OTHER}) == []
    r.check()


def test_an_argument_that_is_still_held_counts_as_registered_from_now_on() -> None:
    r = counter()
    r.hold(A, OTHER)
    r.own(B)
    assert r.kept({A: OTHER, B: ME, C: OTHER}) == [(A, OTHER)]
    assert deltas(r) == {}
    r.release(A)
    assert deltas(r) == {OTHER: [(A, ME[0], -1)]}
    r.check()


def test_giving_what_this_process_is_registered_for_is_not_noted() -> None:
    r = counter()
    r.own(B)
    r.contain(B, ((A, OTHER),), received=True)
    r.give(A, OTHER, THIRD[0])
    assert r.passed == {}, "drivers must not collect notes that only the end of a task would clear"


# -- checks ---------------------------------------------------------------------------------------------------------


def test_check_sees_broken_books() -> None:
    for broken in ("counts", "handed", "borrowers", "contained"):
        r = counter()
        r.own(A)
        if broken == "counts":
            r.counts[A] = 0
        elif broken == "handed":
            r.handed[B] = 1
        elif broken == "borrowers":
            r.borrowers[A] = {}
        else:
            r.contained[B] = (A,)
        with pytest.raises(InvariantError):
            r.check()


# -- random walks ---------------------------------------------------------------------------------------------------


class Cluster:
    """Several counters and the links between them: a message is delivered in order on its link, whenever chance says.

    The model is the simplest there is: who holds how many handles of the one object, and which values on their way hold it.
    """

    NAMES = ("owner", "p", "q", "s")

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.addresses = [address(n) for n in self.NAMES]
        self.counters = [ReferenceCounter(a) for a in self.addresses]
        self.index = {a[0]: n for n, a in enumerate(self.addresses)}
        self.links: dict[tuple[int, int], list[Any]] = {}
        self.containers: list[list[bytes]] = [[] for _ in self.NAMES]
        self.queued: list[list[int]] = [[] for _ in self.NAMES]  # submitters of the tasks waiting at each process
        self.running: list[int | None] = [None for _ in self.NAMES]
        self.slow = [(n, m) for n in range(4) for m in range(4) if rng.random() < 0.3]  # rarely delivered
        self.serial = 0
        self.counters[0].own(A)
        self.handles = [1, 0, 0, 0]

    def flush(self, n: int) -> None:
        for owner, batch in deltas(self.counters[n]).items():
            self.links.setdefault((n, self.index[owner[0]]), []).append(("refs", batch))
        self.counters[n].check()

    def send_value(self, giver: int, receiver: int) -> None:
        """A value with the reference inside goes from one process to another."""
        self.counters[giver].give(A, self.addresses[0], self.addresses[receiver][0])
        self.flush(giver)
        self.links.setdefault((giver, receiver), []).append(("value", None))

    def deliver(self, link: tuple[int, int]) -> None:
        kind, batch = self.links[link].pop(0)
        if not self.links[link]:
            del self.links[link]
        n = link[1]
        r = self.counters[n]
        if kind == "refs":
            r.on_refs(batch)
        elif kind == "task":
            self.queued[n].append(link[0])
        elif kind == "done":
            for object_id, owner in batch:
                r.give(object_id, owner, self.addresses[link[0]][0])
            r.release(A)
        elif self.rng.random() < 0.2:
            r.decline(((A, self.addresses[0]),))
        else:
            self.serial += 1
            outer = self.serial.to_bytes(20, "big")
            r.own(outer)
            r.contain(outer, ((A, self.addresses[0]),), received=True)
            self.containers[n].append(outer)
        self.flush(n)
        self.assert_kept()

    def borrow(self, n: int) -> None:
        """Who holds a reference finds it by a name too, and makes another by hand."""
        self.counters[n].borrow(A, self.addresses[0])
        self.handles[n] += 1
        self.flush(n)

    def submit(self, submitter: int, worker: int) -> None:
        """The reference goes along as an argument: the submitter keeps one need until the DONE."""
        self.counters[submitter].hold(A, self.addresses[0])
        self.links.setdefault((submitter, worker), []).append(("task", None))

    def start_task(self, n: int) -> None:
        self.running[n] = self.queued[n].pop(0)
        self.counters[n].hold(A, self.addresses[0])
        self.handles[n] += 1

    def end_task(self, n: int) -> None:
        submitter = self.running[n]
        assert submitter is not None
        self.running[n] = None
        named = self.counters[n].kept({A: self.addresses[0]} if n else {})
        self.flush(n)
        self.links.setdefault((n, submitter), []).append(("done", named))

    def step(self) -> None:
        choices: list[Any] = [("deliver", link) for link in self.links if link not in self.slow] * 3
        if self.rng.random() < 0.05:
            choices += [("deliver", link) for link in self.links]
        # Where everybody holds it nothing can go wrong, and where nobody does nothing happens: keep the holders few.
        needs = sum(self.handles) + sum(map(len, self.containers)) + len(self.links)
        spread = self.rng.random() < 1 / (1 + needs)
        for n, r in enumerate(self.counters):
            if A in r.counts and spread:
                choices += [(w, (n, m)) for m in range(4) if m != n for w in ("send", "submit")] + [("hold", n), ("borrow", n)]
                if self.running[n] is not None:
                    # A value goes to the owner only from the owner of a container or as a result, and both are protected.
                    choices = [c for c in choices if c != ("send", (n, 0))]
            if self.running[n] is not None:
                choices += [("end_task", n)] * 2
            elif self.queued[n]:
                choices += [("start_task", n)] * 2
            if self.handles[n] and needs > 1:
                choices += [("release", n)] * 3
            if self.containers[n] and needs > 1:
                choices += [("drop", n)] * 3
        if not choices:
            return
        what, where = self.rng.choice(choices)
        if what == "deliver":
            self.deliver(where)
        elif what == "send":
            self.send_value(*where)
        elif what in ("submit", "start_task", "end_task", "borrow"):
            getattr(self, what)(*where if type(where) is tuple else (where,))
        elif what == "hold":
            self.counters[where].hold(A, self.addresses[0])
            self.handles[where] += 1
        elif what == "release":
            self.handles[where] -= 1
            self.counters[where].release(A)
            self.flush(where)
        else:
            self.counters[where].release(self.containers[where].pop())
            self.flush(where)
        self.assert_kept()

    def assert_kept(self) -> None:
        holders = any(A in r.counts for r in self.counters)
        if holders:
            assert A not in self.counters[0].freed, "freed although somebody still holds it"

    def finish(self) -> None:
        while self.links or any(self.queued) or any(s is not None for s in self.running):
            if self.links:
                self.deliver(self.rng.choice(list(self.links)))
            for n in range(4):
                if self.running[n] is not None:
                    self.end_task(n)
                elif self.queued[n]:
                    self.start_task(n)
        for n in range(4):
            for _ in range(self.handles[n]):
                self.counters[n].release(A)
            for outer in self.containers[n]:
                self.counters[n].release(outer)
            self.flush(n)
        while self.links:
            self.deliver(self.rng.choice(list(self.links)))
        assert self.counters[0].freed.count(A) == 1, "freed exactly once, when nobody holds it"
        for r in self.counters:
            assert not r.counts and not r.borrowers and not r.handed and not r.contained and not r.passed


@settings(max_examples=400)
@given(st.integers(0, 1 << 30), st.integers(5, 120))
def test_random_walk_no_reference_is_lost_and_none_leaks_whatever_overtakes_what(seed: int, steps: int) -> None:
    cluster = Cluster(random.Random(seed))
    for _ in range(steps):
        cluster.step()
    cluster.finish()


def test_process_names_are_distinct() -> None:
    assert len({process(n) for n in Cluster.NAMES}) == len(Cluster.NAMES)
