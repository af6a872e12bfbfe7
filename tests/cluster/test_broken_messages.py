"""Garbage on the sockets of head, driver and worker: it is counted and dropped, nobody runs it, and the next call works."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

import zray as ray
from zray import object_ref
from zray.base import wire
from zray.io.greeting import PYTHON, encode_hello

from .driving import eventually

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.processes("it speaks to sockets")]

ME = b"a stranger here."


class Stranger:
    """A raw DEALER at the endpoint of a process of the cluster."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 5000)
        self.socket.connect(endpoint)

    def say(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def introduce(self, **changed: Any) -> None:
        """A Hello that fits, or one with some fields changed."""
        self.say(encode_hello(hello(**changed)))

    def answer(self) -> Any:
        assert self.socket.poll(30_000), "no answer"
        return pickle.loads(self.socket.recv())


def hello(**changed: Any) -> wire.Hello:
    cluster: bytes = object_ref.connected.transport._cluster  # type: ignore[union-attr]
    good = wire.Hello(wire.PROTOCOL_VERSION, PYTHON, cluster, ME, "worker", "ipc:///nowhere", os.getpid())
    return good._replace(**changed)


@pytest.fixture(params=["head", "driver", "worker"])
def endpoint(request: Any, cluster: Any) -> str:
    """Where each kind of process listens."""
    if request.param == "head":
        return str(cluster["address"])
    if request.param == "driver":
        return str(object_ref.connected.address[1])  # type: ignore[union-attr]
    return str(ray.get(ray.remote(lambda: object_ref.connected.address[1]).remote()))  # type: ignore[union-attr]


@pytest.fixture
def stranger(endpoint: str) -> Iterator[Callable[[], Stranger]]:
    context = zmq.Context()
    made: list[Stranger] = []

    def make() -> Stranger:
        made.append(Stranger(context, endpoint))
        return made[-1]

    yield make
    for each in made:
        each.socket.close()
    context.term()


@pytest.fixture(autouse=True)
def the_cluster_goes_on(cluster: Any) -> Iterator[None]:
    """The same driver, head and node serve the next call, which needs all of them."""
    node = ray.nodes()[0]["NodeID"]
    yield
    fresh = ray.remote(lambda x: len(x) + 1)  # a function the workers do not know yet
    assert ray.get(fresh.remote(ray.put(bytes(300_000))), timeout=30) == 300_001
    assert ray.nodes()[0]["NodeID"] == node


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def garbage() -> list[bytes]:
    """Frames that are no batch of messages, in many ways."""
    chance = random.Random(7)
    batch = wire.encode([(wire.OPS[wire.ListNodes], 1)])
    frames = [
        b"",
        b"[]",
        b"[1, 2, 3, 4, 5, 6, 7]",
        b'["", "", "zz", "00", "", "", 0]',
        b"[" * 4000,
        b"1" * 4000,
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x05.",
        b"\x80\xff.",
        pickle.dumps(None),
        pickle.dumps(17),
        pickle.dumps({"op": 1}),
        pickle.dumps([1, 2, 3]),
        pickle.dumps([None]),
        pickle.dumps([()]),
        pickle.dumps([[1, 2]]),
        pickle.dumps([("op",)]),
        pickle.dumps([(-1,)]),
        pickle.dumps([(10**30,)]),
        pickle.dumps([(True,)]),
        pickle.dumps([(1.0,)]),
        b"(" * 100_000 + b".",
        b"\x80\x05" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x05X\xff\xff\xff\x7f.",
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x05\x97.",
        b"\x80\x05}]K\x01s.",
    ]
    frames += [batch[:cut] for cut in range(0, len(batch), 3)]
    for _ in range(200):
        torn = bytearray(batch)
        for _ in range(chance.randrange(1, 4)):
            torn[chance.randrange(len(torn))] = chance.randrange(256)
        frames.append(bytes(torn))
    frames += [chance.randbytes(chance.randrange(1, 200)) for _ in range(200)]
    return frames


def test_garbage_from_somebody_who_has_not_introduced_himself(stranger: Callable[[], Stranger]) -> None:
    one = stranger()
    for frame in garbage():
        one.say(frame)
    one.say(b"two", b"frames")
    one.say(*[b"many"] * 50)
    one.say(wire.encode([wire.pack(wire.ListNodes(1))]))
    one.introduce()  # and a proper introduction on the same connection is still heard


def test_garbage_from_many_connections(stranger: Callable[[], Stranger]) -> None:
    for frame in garbage()[::20]:
        stranger().say(frame)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cluster": b"x" * 16}, "another cluster"),
        ({"version": 99}, "install the same zray"),
        ({"python": "2.7"}, "same minor version"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_with_the_reason(
    stranger: Callable[[], Stranger], changed: dict[str, Any], reason: str
) -> None:
    one = stranger()
    one.introduce(**changed)
    ((op, text),) = one.answer()
    assert op == wire.OPS[wire.Refuse]
    assert reason in text
    one.say(wire.encode([wire.pack(wire.ListNodes(1))]))  # and what follows is not looked at


@pytest.mark.parametrize("changed", [{"pid": 0}, {"pid": -1}, {"pid": 1 << 40}, {"role": "nobody"}, {"sender": b""}])
@pytest.mark.parametrize("role", ["driver", "worker", "agent", "control"])
def test_a_hello_with_strange_fields(
    stranger: Callable[[], Stranger], role: str, changed: dict[str, Any]
) -> None:
    one = stranger()
    one.introduce(**{"role": role, **changed})
    one.say(b"garbage")


def test_a_second_hello_and_a_second_connection_of_the_same_peer(stranger: Callable[[], Stranger]) -> None:
    one, two = stranger(), stranger()
    one.introduce()
    one.introduce()
    one.introduce(sender=b"somebody else...")
    two.introduce()


def test_garbage_from_somebody_who_has_introduced_himself(stranger: Callable[[], Stranger]) -> None:
    one = stranger()
    one.introduce()
    for frame in garbage():
        one.say(frame)
    one.say(b"two", b"frames")


def test_a_malicious_pickle_is_not_run(stranger: Callable[[], Stranger], tmp_path: Any, endpoint: str, cluster: Any) -> None:
    """Not before an introduction, and by the head never."""
    path = str(tmp_path / "made")
    one = stranger()
    bad = pickle.dumps([(wire.HELLO, Malicious(path))])
    one.say(bad)
    one.say(pickle.dumps(Malicious(path)))
    if endpoint == cluster["address"]:
        one.introduce()
        one.say(bad)
        one.say(pickle.dumps([wire.pack(wire.KvPut(1, b"n", b"k", Malicious(path), True))]))  # type: ignore[arg-type]
    ray.get(ray.remote(lambda: 1).remote())
    assert not os.path.exists(path)


def test_messages_with_unknown_ops_and_wrong_arity_and_wrong_types(stranger: Callable[[], Stranger]) -> None:
    one = stranger()
    one.introduce()
    for op, schema in wire.SCHEMA.items():
        count = len(schema.checks)
        for fields in ((), (None,) * (count + 1), (None,) * count, ("x",) * count, (1,) * count, (b"x",) * count):
            if not wire.well_formed((op, *fields)):
                one.say(wire.encode([(op, *fields)]))
    one.say(wire.encode([(op,) for op in range(200, 300)]))


# What a member of the cluster may order: there is nothing wrong with these messages. Hot messages are not looked into either:
# they go between processes of one job, which run each other's code anyway.
ORDERS = ("Hello", "Refuse", "ExitWorker", "FinishJob", "JobFinished", "ProcessDied", "KillActor", "EndActor", "JobEnded")
FILL = {int: 1 << 30, str: "no such thing", bytes: b"no such thing", bool: True, float: 1.0, object: None}


def test_well_formed_messages_about_things_that_do_not_exist(stranger: Callable[[], Stranger]) -> None:
    """Each message once, from somebody it does not come from, about jobs, leases, objects that nobody has."""
    one = stranger()
    one.introduce()
    for op, schema in wire.SCHEMA.items():
        if schema.name in ORDERS or schema.hot:
            continue
        fields = [FILL.get(kinds[0], kinds[0]()) if kinds[0] in FILL else kinds[0]() for kinds in schema.checks]
        one.say(wire.encode([(op, *fields)]))


def test_fields_whose_insides_are_wrong(stranger: Callable[[], Stranger]) -> None:
    """The outer types are right, and what is in them is not."""
    one = stranger()
    one.introduce()
    inner: dict[type, list[Any]] = {
        dict: [{1: 2}, {"CPU": "many"}, {"CPU": None}, {b"x": -1}, {"CPU": -1}, {"CPU": 1.5}],
        list: [[1], [None], [()], [(1, 2)], [[1, 2, 3]], [b"x"], [(b"x", b"y", "z")], ["x"]],
        tuple: [(), (1,), (7, b"x"), (2,), ("x", "y", "z")],
        int: [-1, 1 << 80],
        str: ["", "ipc://", "\ud800", "tcp://x:y:z"],
        bytes: [b"", b"x" * 1000],
    }
    for op, schema in wire.SCHEMA.items():
        if schema.name in ORDERS or schema.hot:
            continue
        plain = [FILL.get(kinds[0], kinds[0]()) if kinds[0] in FILL else kinds[0]() for kinds in schema.checks]
        for index, kinds in enumerate(schema.checks):
            for value in inner.get(kinds[0], [{"a": [1]}]):
                one.say(wire.encode([(op, *plain[:index], value, *plain[index + 1 :])]))


def test_a_stranger_who_leaves_in_the_middle(stranger: Callable[[], Stranger]) -> None:
    for _ in range(20):
        one = stranger()
        one.introduce(sender=os.urandom(16))
        one.say(wire.encode([wire.pack(wire.ListNodes(1))]))
        one.socket.close(0)


def test_what_was_dropped_is_counted(cluster: Any) -> None:
    context = zmq.Context()
    one = Stranger(context, object_ref.connected.address[1])  # type: ignore[union-attr]
    counts = object_ref.connected.transport.counts  # type: ignore[union-attr]
    before = sum(counts.values())
    for _ in range(10):
        one.say(b"garbage")
    eventually(lambda: ray.nodes() and sum(counts.values()) >= before + 10, "ten frames are counted")
    one.socket.close()
    context.term()
