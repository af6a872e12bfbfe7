"""Lost objects of an owner: who looks for them, and how they come back; and what is remembered of the tasks that made them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zray.base.ids import agent_id
from zray.base.wire import INLINE, STORED, FreeObjects, GetObject, ObjectValue, Push
from zray.base.wire_transfer import CopiesFound, FindCopies, RecoverObject
from zray.core.effects import ADOPT_FILE, DIAL, RESOLVE
from zray.core.recovery import LOST_LIFECYCLE, LostState
from zray.core.waiters import Waiter
from zray.exceptions import ObjectLostError, ObjectReconstructionFailedError, WorkerCrashedError
from zray.object_ref import ObjectRef

from .owner_bench import FRIEND, ME, NODE, WORKER, A, Bench
from .reading import AGENT, sent, verbs

THERE, ELSEWHERE = bytes(range(16)), bytes(range(16, 32))
SIZE = 1 << 18  # too little for tasks to go there
Ref = ObjectRef[Any]


def stored(node: bytes = THERE, contained: Any = ()) -> Any:
    return (STORED, SIZE, node, contained)


class Losing(Bench):
    """A bench whose results lie on a node that can die."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.lease = 0

    def made(self, *args: Any, entries: Any = None, **options: Any) -> list[Ref]:
        """The results of a task that ran on that node."""
        returns = len(entries) if entries is not None else 1
        refs, effects = self.call(*args, returns=returns, **options)
        if self.lease == 0:
            self.lease, _ = self.grant(effects)
        self.done(self.lease, refs[0], *(entries or [stored()]))
        return refs

    def answers(self, task_id: bytes) -> list[Any]:
        """The worker has run a task, on another node than before."""
        return self.hears("done", self.lease, [(task_id, [stored(ELSEWHERE)], 10, [])], peer=WORKER[0])

    def node_dies(self, node: bytes = THERE) -> list[Any]:
        return self.hears("worker_died", agent_id(node), "its node is dead")

    def recovers(self, object_id: bytes, node: bytes, reason: str) -> list[Any]:
        """Somebody here could not read an object."""
        self.owner.recover(object_id, node, reason)
        return self.turn()

    def nowhere(self, *refs: Ref) -> list[Any]:
        """No other node has a copy."""
        return self.found(*[(ref.binary(), False, b"", "") for ref in refs])

    def found(self, *rows: Any) -> list[Any]:
        assert CopiesFound(list(rows))
        return self.hears("copies_found", list(rows))

    def wait(self, ref: Ref) -> tuple[Waiter, list[Any]]:
        waiter = Waiter(1)
        self.owner.watch(waiter, [ref])
        return waiter, self.turn()

    def lost(self, ref: Ref) -> LostState | None:
        known = self.owner.lost.get(ref.binary())
        return known.state if known is not None else None


def pushed(effects: list[Any]) -> list[bytes]:
    return [spec[0] for _, push in sent(effects, Push) for spec in push.specs]


def freed(effects: list[Any]) -> list[bytes]:
    return [object_id for _, message in sent(effects, FreeObjects) for object_id in message.object_ids]


# -- how they come back ---------------------------------------------------------------------------------------------


def test_a_copy_on_another_node_becomes_the_primary_and_nothing_runs_again() -> None:
    bench = Losing()
    [ref] = bench.made()
    effects = bench.node_dies()
    assert sent(effects, FindCopies) == [(AGENT, FindCopies([ref.binary()]))]
    waiter, _ = bench.wait(ref)
    effects = bench.found((ref.binary(), True, ELSEWHERE, "sim://elsewhere"))
    assert verbs(effects, RESOLVE) == [(waiter,)] and not pushed(effects)
    assert (agent_id(ELSEWHERE), "sim://elsewhere") in verbs(effects, DIAL)
    assert bench.owner.memory[ref.binary()] == stored(ELSEWHERE)
    del ref
    [(_, message)] = sent(bench.turn(), FreeObjects)
    assert message.agent == agent_id(ELSEWHERE)


def test_a_copy_on_the_owners_own_node_needs_no_place() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.node_dies()
    bench.found((ref.binary(), True, b"", ""))
    assert bench.owner.memory[ref.binary()] == stored(NODE)


def test_the_file_to_which_it_was_spilled_is_read_where_there_is_no_copy() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("objects_spilled", [(ref.binary(), "store://file", 10, 99)])
    bench.node_dies()
    assert verbs(bench.nowhere(ref), ADOPT_FILE) == [(ref.binary(), SIZE, "store://file", 10, 99)]
    effects = bench.does("on_file_adopted", ref.binary(), "")
    assert bench.owner.memory[ref.binary()] == stored(NODE)
    assert freed(effects) == [ref.binary()], "where it was, should that node live"


def test_a_file_for_which_there_is_no_room_is_read_again_and_the_object_is_not_lost() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("objects_spilled", [(ref.binary(), "store://file", 10, 99)])
    bench.node_dies()
    waiter, effects = bench.wait(ref)
    effects = bench.nowhere(ref)
    for _ in range(5):
        effects = bench.does("on_file_adopted", ref.binary(), "full", True)
        assert verbs(effects, ADOPT_FILE) == [(ref.binary(), SIZE, "store://file", 10, 99)] and not pushed(effects)
    assert verbs(bench.does("on_file_adopted", ref.binary(), ""), RESOLVE) == [(waiter,)]


def test_where_there_is_no_room_for_long_the_task_runs_again() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("objects_spilled", [(ref.binary(), "store://file", 10, 99)])
    bench.node_dies()
    bench.wait(ref)
    effects = bench.nowhere(ref)
    times = 0
    while verbs(effects, ADOPT_FILE):
        times += 1
        effects = bench.does("on_file_adopted", ref.binary(), "full", True)
    assert times > 5 and pushed(effects) == [ref.binary()[:16]]


def test_a_task_runs_again_once_somebody_waits_for_what_it_made() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("objects_spilled", [(ref.binary(), "store://file", 10, 99)])
    bench.node_dies()
    bench.nowhere(ref)
    assert not pushed(bench.does("on_file_adopted", ref.binary(), "the disk is gone"))
    assert bench.lost(ref) is LostState.RESTING
    waiter, effects = bench.wait(ref)
    assert pushed(effects) == [ref.binary()[:16]]
    assert verbs(bench.done(bench.lease, ref, stored(ELSEWHERE)), RESOLVE) == [(waiter,)]
    del ref, waiter
    assert freed(bench.turn()) and bench.at_rest() and not bench.owner.lineage.origins


def test_who_waits_before_it_is_known_that_there_is_no_copy_is_served_too() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.node_dies()
    _, effects = bench.wait(ref)
    assert not pushed(effects)
    assert pushed(bench.nowhere(ref)) == [ref.binary()[:16]]


def test_arguments_that_were_freed_are_made_again_too_and_freed_again() -> None:
    bench = Losing()
    [first] = bench.made()
    [second] = bench.made(first)
    [third] = bench.made(second)
    first_id, second_id = first.binary(), second.binary()
    del first, second
    assert sorted(freed(bench.turn())) == sorted([first_id, second_id])
    bench.node_dies()
    bench.nowhere(third)
    _, effects = bench.wait(third)
    assert pushed(effects) == [first_id[:16]]
    effects = bench.answers(first_id[:16])
    assert pushed(effects) == [second_id[:16]]
    effects = bench.answers(second_id[:16])
    assert pushed(effects) == [third.binary()[:16]] and freed(effects) == [first_id]
    assert freed(bench.answers(third.binary()[:16])) == [third.binary(), second_id], "the lost one, should its node live"
    del third
    bench.turn()
    assert bench.at_rest() and not bench.owner.lineage.needed


def test_of_several_results_only_those_are_taken_that_are_missing() -> None:
    bench = Losing()
    refs = bench.made(entries=[(INLINE, b"small"), stored(ELSEWHERE), stored()])
    bench.node_dies()
    bench.nowhere(refs[2])
    bench.wait(refs[2])
    effects = bench.done(bench.lease, refs[0], (INLINE, b"other"), stored(THERE), stored(ELSEWHERE))
    memory = bench.owner.memory
    assert [memory[ref.binary()] for ref in refs] == [(INLINE, b"small"), stored(ELSEWHERE), stored(ELSEWHERE)]
    assert refs[1].binary() in freed(effects), "the second value of the middle one is one too many"
    assert [m.agent for _, m in sent(effects, FreeObjects) if m.object_ids == [refs[1].binary()]] == [agent_id(THERE)]


def test_a_value_with_references_inside_holds_those_that_it_has_now() -> None:
    bench = Losing()
    inner, other = bench.put(b"1"), bench.put(b"2")
    [ref] = bench.made(entries=[stored(contained=((inner.binary(), ME),))])
    inner_id = inner.binary()
    del inner
    bench.turn()
    assert inner_id in bench.owner.memory
    bench.node_dies()
    bench.nowhere(ref)
    bench.wait(ref)
    bench.done(bench.lease, ref, stored(ELSEWHERE, ((other.binary(), ME),)))
    assert inner_id not in bench.owner.memory
    other_id = other.binary()
    del other
    bench.turn()
    assert other_id in bench.owner.memory
    del ref
    bench.turn()
    assert bench.at_rest()


def test_a_task_whose_argument_is_lost_before_it_is_pushed_waits_for_it_again() -> None:
    bench = Losing()
    [ref] = bench.made()
    [busy], _ = bench.call()
    [result], _ = bench.call(ref, bench.ref(busy.binary()))
    bench.inbox.clear()
    bench.node_dies()
    assert not pushed(bench.done(bench.lease, busy, (INLINE, b"1")))
    assert pushed(bench.nowhere(ref)) == [ref.binary()[:16]] and bench.lost(ref) is LostState.REBUILDING
    assert pushed(bench.done(bench.lease, ref, stored(ELSEWHERE))) == [result.binary()[:16]]


def test_a_worker_that_has_the_task_already_asks_and_is_answered_when_it_is_there() -> None:
    bench = Losing()
    [ref] = bench.made()
    [result], effects = bench.call(ref)
    assert pushed(effects) == [result.binary()[:16]]
    bench.node_dies()
    effects = bench.hears("recover_object", ref.binary(), THERE, peer=WORKER[0])
    assert not sent(effects, ObjectValue) and not sent(effects, FindCopies)
    effects = bench.found((ref.binary(), True, ELSEWHERE, "sim://elsewhere"))
    assert sent(effects, ObjectValue) == [(WORKER[0], ObjectValue(ref.binary(), stored(ELSEWHERE)))]


# -- who notices ----------------------------------------------------------------------------------------------------


def test_a_reader_that_can_not_read_has_the_object_recovered_once() -> None:
    bench = Losing()
    [ref] = bench.made()
    effects = bench.recovers(ref.binary(), THERE, "its file was removed")
    assert sent(effects, FindCopies) == [(AGENT, FindCopies([ref.binary()]))]
    assert bench.recovers(ref.binary(), THERE, "its file was removed") == []
    effects = bench.nowhere(ref)
    assert pushed(effects) == [ref.binary()[:16]]
    effects = bench.done(bench.lease, ref, stored(ELSEWHERE))
    assert freed(effects) == [ref.binary()], "the node may live, and have it still"
    assert bench.recovers(ref.binary(), THERE, "stale") == [], "that was some time ago"


def test_a_borrower_asks_the_owner_again_and_is_answered_when_it_is_there() -> None:
    bench = Losing()
    [ref] = bench.made()
    effects = bench.hears("recover_object", ref.binary(), ELSEWHERE, peer=FRIEND[0])
    assert sent(effects, ObjectValue) == [(FRIEND[0], ObjectValue(ref.binary(), stored()))], "it had an old entry"
    effects = bench.hears("recover_object", ref.binary(), THERE, peer=FRIEND[0])
    assert sent(effects, ObjectValue) == [] and sent(effects, FindCopies)
    bench.nowhere(ref)
    effects = bench.done(bench.lease, ref, stored(ELSEWHERE))
    assert sent(effects, ObjectValue) == [(FRIEND[0], ObjectValue(ref.binary(), stored(ELSEWHERE)))]
    effects = bench.hears("recover_object", A, THERE, peer=FRIEND[0])
    [(_, answer)] = sent(effects, ObjectValue)
    assert answer.object_id == A and answer.entry[0] not in (STORED, INLINE), "there is no such object"


def test_what_is_borrowed_is_asked_for_at_its_owner() -> None:
    bench = Losing()
    ref = bench.adopt(A, FRIEND)
    bench.owner.seek([ref])
    assert sent(bench.turn(), GetObject)
    bench.hears("object_value", A, stored(), peer=FRIEND[0])
    effects = bench.recovers(A, THERE, "its node is dead")
    assert sent(effects, RecoverObject) == [(FRIEND[0], RecoverObject(A, THERE))]
    assert A not in bench.owner.memory
    waiter, _ = bench.wait(ref)
    assert verbs(bench.hears("object_value", A, stored(ELSEWHERE), peer=FRIEND[0]), RESOLVE) == [(waiter,)]
    del ref, waiter
    bench.turn()
    assert bench.at_rest()


def test_an_object_that_is_freed_while_it_is_looked_for_leaves_nothing_behind() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.node_dies()
    object_id = ref.binary()
    del ref
    bench.turn()
    assert bench.at_rest() and not bench.owner.lost
    [(_, message)] = sent(bench.found((object_id, True, ELSEWHERE, "sim://elsewhere")), FreeObjects)
    assert message == FreeObjects([object_id], agent_id(ELSEWHERE)), "the copy that was adopted meanwhile"


def test_who_waits_for_an_object_that_is_freed_while_it_is_looked_for_is_told() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("recover_object", ref.binary(), THERE, peer=FRIEND[0])
    object_id = ref.binary()
    del ref
    [(peer, answer)] = sent(bench.turn(), ObjectValue)
    assert (peer, answer.object_id) == (FRIEND[0], object_id) and answer.entry[0] not in (STORED, INLINE)
    assert bench.at_rest() and not bench.owner._remote_gets


def test_a_file_that_is_read_for_nobody_is_freed() -> None:
    bench = Losing()
    [ref] = bench.made()
    bench.hears("objects_spilled", [(ref.binary(), "store://file", 10, 99)])
    bench.node_dies()
    bench.nowhere(ref)
    object_id = ref.binary()
    del ref
    bench.turn()
    assert freed(bench.does("on_file_adopted", object_id, "")) == [object_id]


# -- what can not come back -----------------------------------------------------------------------------------------


def test_what_was_put_can_not_be_made_again_and_the_error_says_so() -> None:
    bench = Losing()
    put = bench.ids() + bytes(4)
    bench.owner.put(put, stored())
    ref = bench.ref(put)
    bench.node_dies()
    bench.nowhere(ref)
    error = bench.error(ref)
    assert isinstance(error, ObjectReconstructionFailedError) and isinstance(error, ObjectLostError)
    assert "it was put" in str(error) and "its node is dead" in str(error)


def test_a_task_that_may_not_run_again_does_not() -> None:
    bench = Losing()
    [ref] = bench.made(retries=0)
    bench.node_dies()
    assert not pushed(bench.nowhere(ref))
    assert "max_retries" in str(bench.error(ref)) and not bench.owner.lineage.origins


def test_each_run_again_costs_one_retry() -> None:
    bench = Losing()
    [ref] = bench.made(retries=2)
    for _ in range(2):
        bench.recovers(ref.binary(), THERE, "gone")
        assert pushed(bench.nowhere(ref))
        bench.done(bench.lease, ref, stored())
    bench.recovers(ref.binary(), THERE, "gone")
    assert not pushed(bench.nowhere(ref))
    assert "as often as max_retries allows" in str(bench.error(ref))


def test_an_argument_that_was_put_and_freed_is_named() -> None:
    bench = Losing()
    put = bench.ids() + bytes(4)
    bench.owner.put(put, stored(NODE))
    [ref] = bench.made(bench.ref(put))
    bench.turn()
    assert put not in bench.owner.memory
    bench.node_dies()
    bench.nowhere(ref)
    assert put.hex() in str(bench.error(ref)) and "keep its reference" in str(bench.error(ref))


def test_a_worker_that_dies_under_the_second_run_is_retried_and_then_given_up() -> None:
    bench = Losing()
    [ref] = bench.made(retries=1)
    bench.node_dies()
    bench.nowhere(ref)
    bench.wait(ref)
    effects = bench.hears("lease_lost", bench.lease, "killed")
    lease, effects = bench.grant(effects)
    assert pushed(effects) == [ref.binary()[:16]]
    bench.hears("lease_lost", lease, "killed")
    assert isinstance(bench.error(ref), WorkerCrashedError) and not bench.owner.lost


# -- what is remembered ---------------------------------------------------------------------------------------------


def test_small_results_need_no_origin_and_small_arguments_are_held() -> None:
    bench = Losing()
    small = bench.made(entries=[(INLINE, b"1")])
    assert not bench.owner.lineage.origins
    argument = small[0].binary()
    [ref] = bench.made(small.pop())
    bench.turn()
    assert argument in bench.owner.memory, "nothing could make it again"
    del ref
    bench.turn()
    assert bench.at_rest()


def test_the_oldest_origins_are_forgotten_when_there_are_too_many() -> None:
    bench = Losing(lineage_bytes_max=1200)
    refs = [bench.made()[0] for _ in range(4)]
    lineage = bench.owner.lineage
    assert list(lineage.origins) == [ref.binary()[:16] for ref in refs[2:]] and lineage.forgotten == 2
    bench.node_dies()
    bench.nowhere(refs[0])
    assert "ZRAY_LINEAGE_BYTES_MAX" in str(bench.error(refs[0]))


def test_a_long_chain_is_forgotten_without_recursion() -> None:
    bench = Losing()
    [ref] = bench.made()
    for _ in range(3000):
        [ref] = bench.made(ref)
    bench.turn()
    assert len(bench.owner.lineage.origins) == 3001 and len(bench.owner.memory) == 1
    del ref
    bench.turn()
    assert bench.at_rest() and not bench.owner.lineage.origins


def test_the_lifecycle_has_no_other_moves() -> None:
    assert LOST_LIFECYCLE.next(LostState.RESTING, "wanted") is LostState.REBUILDING
    with pytest.raises(Exception, match="wanted"):
        LOST_LIFECYCLE.next(LostState.SEARCHING, "wanted")


@pytest.mark.parametrize("seed", range(40))
def test_random_walks_end_with_every_value_or_a_reason_and_nothing_kept(seed: int) -> None:
    rng = random.Random(seed)
    bench = Losing(lineage_bytes_max=rng.choice([2000, 1 << 20]))
    refs: list[Ref] = []
    pending: dict[bytes, int] = {}

    def answer_all() -> None:
        for _ in range(200):
            searched = [i for i, lost in bench.owner.lost.items() if lost.state is LostState.SEARCHING]
            if searched:
                where = rng.choice([(True, ELSEWHERE, "sim://e"), (False, b"", ""), (False, b"", "")])
                bench.found((searched[0], *where))
            reading = [i for i, lost in bench.owner.lost.items() if lost.state is LostState.READING]
            if reading:
                bench.does("on_file_adopted", reading[0], rng.choice(["", "gone"]), rng.random() < 0.3)
            tasks = list(bench.owner.tasks.pending.values())
            runs = [t for t in tasks if not t.missing and any(t.id in q.inflight for q in bench.owner.leases.leases.values())]
            if runs:
                task = rng.choice(runs)
                entries = [rng.choice([stored(THERE), stored(ELSEWHERE), (INLINE, b"1")]) for _ in task.returns]
                bench.hears("done", bench.lease, [(task.id, entries, 10, [])], peer=WORKER[0])
                del task
            del tasks, runs

    for _ in range(60):
        what = rng.random()
        if what < 0.4:
            args = rng.sample(refs, min(len(refs), rng.randint(0, 2)))
            if rng.random() < 0.8:
                made = bench.made(*args) if all(a.binary() in bench.owner.memory for a in args) else []
                refs += made
                del made
            del args
        elif what < 0.6 and refs:
            refs.pop(rng.randrange(len(refs)))
            bench.turn()
        elif what < 0.7 and refs:
            ref = rng.choice(refs)
            bench.hears("objects_spilled", [(ref.binary(), "store://f", 0, 1)])
            del ref
        elif what < 0.85:
            bench.node_dies(rng.choice([THERE, ELSEWHERE]))
        elif refs:
            bench.wait(rng.choice(refs))
        if rng.random() < 0.3:
            answer_all()
    for ref in refs:
        bench.wait(ref)
    if refs:
        del ref
    answer_all()
    assert all(ref.binary() in bench.owner.memory for ref in refs), "a value, or why there is none"
    refs.clear()
    pending.clear()
    bench.turn()
    assert bench.at_rest() and not bench.owner.lost and not bench.owner.lineage.origins
