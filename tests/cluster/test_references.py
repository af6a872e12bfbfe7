"""Who keeps an object: references inside arguments, results, other objects and other processes."""

from __future__ import annotations

import gc
import os
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray import object_ref
from zray.exceptions import OwnerDiedError

from .driving import alive, eventually

pytestmark = pytest.mark.usefixtures("cluster")

SIZES = pytest.mark.parametrize("size", [10, 300_000], ids=["small", "large"])


def owned() -> int:
    """How many objects this process still keeps a value of."""
    return len(object_ref.connected.owner.memory)  # type: ignore[union-attr]


@pytest.fixture(autouse=True)
def everything_is_freed() -> Any:
    """When a test has dropped its references, no value is kept; whoever borrowed one has given it back."""
    gc.collect()
    before = owned()
    yield
    gc.collect()
    eventually(lambda: ray.wait([ray.put(0)]) and owned() <= before + 1, "every object of the test is freed")


@SIZES
def test_a_reference_inside_an_argument_keeps_the_object_while_the_task_is_pending(size: int) -> None:
    @ray.remote
    def read(refs: list[Any]) -> int:
        return len(ray.get(refs[0]))

    results = [read.remote([ray.put(b"x" * size)]) for _ in range(20)]
    gc.collect()
    assert ray.get(results) == [size] * 20


@SIZES
def test_an_argument_reference_may_be_dropped_at_once(size: int) -> None:
    @ray.remote
    def read(data: bytes) -> int:
        return len(data)

    results = [read.remote(ray.put(b"x" * size)) for _ in range(20)]
    gc.collect()
    assert ray.get(results) == [size] * 20


@SIZES
def test_a_reference_inside_an_object_keeps_the_inner_object(size: int) -> None:
    outer = ray.put({"inner": [ray.put(b"x" * size)]})
    gc.collect()
    assert len(ray.get(ray.get(outer)["inner"][0])) == size


def test_boxes_within_boxes() -> None:
    ref = ray.put("innermost")
    for _ in range(50):
        ref = ray.put([ref])
    gc.collect()
    for _ in range(50):
        (ref,) = ray.get(ref)
    assert ray.get(ref) == "innermost"


@SIZES
def test_a_reference_returned_from_a_task(size: int) -> None:
    @ray.remote
    def make() -> Any:
        return [ray.put(b"x" * size)]

    boxes = [make.remote() for _ in range(5)]
    for box in boxes:
        (inner,) = ray.get(box)
        assert len(ray.get(inner)) == size


@SIZES
def test_the_reference_of_a_nested_task_returned_from_its_parent(size: int) -> None:
    @ray.remote
    def child() -> bytes:
        return b"x" * size

    @ray.remote
    def parent() -> Any:
        return child.remote(), [child.remote()]

    first, (second,) = ray.get(parent.remote())
    assert (len(ray.get(first)), len(ray.get(second))) == (size, size)


@SIZES
def test_a_worker_keeps_a_reference_after_its_task(size: int) -> None:
    """It is a borrower then: the owner must not free the object when its own reference goes."""

    @ray.remote
    def keep(refs: list[Any]) -> None:
        import sys

        sys.kept = refs  # type: ignore[attr-defined]

    @ray.remote
    def read() -> Any:
        import sys

        return len(ray.get(sys.kept[0])) if hasattr(sys, "kept") else 0  # type: ignore[attr-defined]

    @ray.remote
    def drop() -> bool:
        import sys

        return vars(sys).pop("kept", None) is not None

    ref = ray.put(b"x" * size)
    ray.get(keep.remote([ref]))
    del ref
    gc.collect()
    for _ in range(3):  # any worker may take a task: ask until the one that kept it does
        assert eventually(lambda: max(ray.get([read.remote() for _ in range(4)])), "the keeper answers") == size
    eventually(lambda: any(ray.get([drop.remote() for _ in range(4)])), "the keeper drops it")


@SIZES
def test_a_borrower_of_a_borrower(size: int) -> None:
    @ray.remote
    def last(refs: list[Any]) -> int:
        return len(ray.get(refs[0]))

    @ray.remote
    def middle(refs: list[Any]) -> Any:
        return [last.remote(refs)]

    @ray.remote
    def first(refs: list[Any]) -> Any:
        return ray.get(middle.remote(refs))

    (ref,) = ray.get(first.remote([ray.put(b"x" * size)]))
    assert ray.get(ref) == size


@SIZES
def test_a_reference_through_a_chain_of_tasks_and_back(size: int) -> None:
    @ray.remote
    def pass_on(refs: list[Any], left: int) -> Any:
        if not left:
            return refs
        return ray.get(pass_on.remote(refs, left - 1))

    refs = [ray.put(b"x" * size)]
    inner = refs[0].hex()
    box = pass_on.remote(refs, 4)
    del refs
    (back,) = ray.get(box)
    assert back.hex() == inner
    assert len(ray.get(back)) == size


def test_a_borrower_waits_for_an_object_that_does_not_exist_yet() -> None:
    @ray.remote
    def slow(refs: list[Any]) -> int:
        return ray.get(refs[0]) + 1

    @ray.remote
    def start() -> Any:
        first = slow.remote([ray.put(1)])
        return slow.remote([first])

    assert ray.get(ray.get(start.remote())) == 3


@pytest.mark.processes("it ends the process of an owner")
@SIZES
def test_an_object_of_a_worker_that_died_says_who_owned_it(size: int) -> None:
    @ray.remote(max_calls=1)
    def make() -> Any:
        return [ray.put(b"x" * size)], os.getpid()

    (ref,), pid = ray.get(make.remote())
    eventually(lambda: not alive(pid), "the end of the owner")
    with pytest.raises(OwnerDiedError, match=r"own") as caught:
        ray.get(ref, timeout=30)
    assert ref.hex() in str(caught.value)


@pytest.mark.processes("it ends the process of an owner")
def test_waiting_for_an_object_whose_owner_dies_ends() -> None:
    @ray.remote(max_retries=0, num_cpus=0)
    def owner(path: str) -> None:
        never = ray.remote(num_cpus=0)(lambda: __import__("time").sleep(1000))
        box = [never.remote()]
        with open(path + "-new", "wb") as file:
            file.write(cloudpickle.dumps(box))
        os.rename(path + "-new", path)
        while os.path.exists(path):
            pass
        os._exit(1)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "box")
        running = owner.remote(path)

        def load() -> Any:
            try:
                with open(path, "rb") as file:
                    return cloudpickle.load(file)
            except FileNotFoundError:
                return None

        (ref,) = eventually(load, "the reference of a worker's task")
        assert ray.wait([ref], timeout=0) == ([], [ref])
        os.unlink(path)
        with pytest.raises(OwnerDiedError):
            ray.get(ref, timeout=30)
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(running)


def test_a_reference_pickled_out_of_band_keeps_the_object_for_the_life_of_its_owner() -> None:
    """Nobody can know when the last copy of the pickle is gone."""
    ref = ray.put("kept")
    data = cloudpickle.dumps({"ref": ref})
    del ref
    gc.collect()
    ray.get(ray.put(1))
    assert ray.get(cloudpickle.loads(data)["ref"]) == "kept"
    assert ray.get(cloudpickle.loads(data)["ref"]) == "kept"
    # What pickling added is taken back, so that the check of what is freed holds for this test too.
    object_ref.connected.release(cloudpickle.loads(data)["ref"].binary())  # type: ignore[union-attr]


def test_a_reference_can_not_be_read_where_there_is_no_cluster(script: Any) -> None:
    program = script(
        """
        import cloudpickle
        start()
        data = cloudpickle.dumps(ray.put(1))
        ray.shutdown()
        try:
            cloudpickle.loads(data)
        except RuntimeError as error:
            say("error", error)
        """
    )
    assert "zray.init()" in program.until("error")
    assert program.finish()[0] == 0


def test_a_reference_in_an_exception_can_be_read() -> None:
    @ray.remote
    def f(refs: list[Any]) -> None:
        raise ValueError(refs[0])

    ref = ray.put("inside")
    with pytest.raises(ValueError) as caught:
        ray.get(f.remote([ref]))
    assert ray.get(caught.value.args[0]) == "inside"


def test_references_made_and_dropped_by_the_thousand_leave_nothing() -> None:
    @ray.remote
    def same(x: Any) -> Any:
        return x

    before = owned()
    for _ in range(3):
        refs = [same.remote([ray.put(i)]) for i in range(300)]
        ray.get([inner for (inner,) in ray.get(refs)])
        del refs
    gc.collect()
    eventually(lambda: ray.wait([ray.put(0)]) and owned() <= before + 1, "all of them are freed")


def test_results_that_were_never_taken_are_freed() -> None:
    @ray.remote
    def make(size: int) -> Any:
        return [ray.put(b"x" * size)], b"y" * size

    for size in (10, 300_000):
        for _ in range(10):
            make.remote(size)
    ray.get([make.remote(1) for _ in range(10)])
