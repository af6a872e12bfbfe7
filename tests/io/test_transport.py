"""Sockets and who is at the other end: introductions, batches, garbage, and peers that go."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
from ends import CLUSTER, turn_until

from zray.base import wire
from zray.io.greeting import PYTHON, decode_hello, encode_hello


def hello(**changed: Any) -> wire.Hello:
    good = wire.Hello(wire.PROTOCOL_VERSION, PYTHON, CLUSTER, b"raw".ljust(16, b"-"), "worker", "", os.getpid())
    return good._replace(**changed)


def test_messages_go_both_ways_over_one_connection(make: Any) -> None:
    a, b = make("a"), make("b")
    a.transport.dial(b.me, b.endpoint)
    a.transport.send(b.me, wire.ListNodes(1))
    turn_until(lambda: b.got, a, b)
    assert b.got == [(a.me, (wire.OPS[wire.ListNodes], 1))]
    assert b.hellos == [wire.Hello(wire.PROTOCOL_VERSION, PYTHON, CLUSTER, a.me, "worker", a.endpoint, os.getpid())]
    b.transport.send(a.me, wire.Reply(1, True, [1, 2]))
    turn_until(lambda: a.got, a, b)
    assert a.got == [(b.me, (wire.OPS[wire.Reply], 1, True, [1, 2]))]


def test_messages_keep_their_order_and_gather_in_frames(make: Any) -> None:
    a, b = make("a"), make("b")
    a.transport.dial(b.me, b.endpoint)
    for i in range(10_000):
        a.transport.send(b.me, (wire.OPS[wire.ListNodes], i))
        if i % 1000 == 0:
            a.loop.turn(0.0)
    turn_until(lambda: len(b.got) == 10_000, a, b)
    assert [message[1] for _, message in b.got] == list(range(10_000))


def test_a_dial_before_the_other_side_exists(make: Any) -> None:
    a = make("a")
    a.transport.dial(b"late".ljust(16, b"-"), a.endpoint.replace("/a", "/late"))
    a.transport.send(b"late".ljust(16, b"-"), wire.ListNodes(1))
    a.loop.turn(0.0)
    late = make("late")
    turn_until(lambda: late.got, a, late)


def test_a_dial_twice_is_one_connection(make: Any) -> None:
    a, b = make("a"), make("b")
    for _ in range(3):
        a.transport.dial(b.me, b.endpoint)
    a.transport.send(b.me, wire.ListNodes(1))
    turn_until(lambda: b.got, a, b)
    assert len(b.hellos) == 1


def test_an_unknown_peer_is_counted(make: Any) -> None:
    a = make("a")
    assert not a.transport.send(b"nobody", wire.ListNodes(1))
    assert a.transport.counts == {"to an unknown peer": 1}


def test_a_peer_that_is_gone_is_counted(make: Any, raw: Any) -> None:
    a = make("a")
    socket = raw(a)
    socket.send(encode_hello(hello()))
    turn_until(lambda: a.hellos, a)
    socket.close(0)

    def send() -> int:
        a.transport.send(hello().sender, wire.ListNodes(1))
        return a.transport.counts.get("to a peer that is gone", 0)

    turn_until(send, a)


def test_a_peer_that_was_hung_up_on(make: Any) -> None:
    a, b = make("a"), make("b")
    a.transport.dial(b.me, b.endpoint)
    a.transport.alias(b"name", b.me)
    a.transport.send(b"name", wire.ListNodes(1))
    turn_until(lambda: b.got, a, b)
    a.transport.hang_up(b.me)
    assert a.transport.send(b"name", wire.ListNodes(2))  # the other name still holds the connection
    a.transport.hang_up(b"name")
    a.transport.hang_up(b"name")
    assert not a.transport.send(b.me, wire.ListNodes(3))
    b.transport.hang_up(a.me)
    assert not b.transport.send(a.me, wire.ListNodes(4))
    a.transport.dial(b.me, b.endpoint)
    a.transport.send(b.me, wire.ListNodes(5))
    turn_until(lambda: b.got[-1][1][1] == 5, a, b)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cluster": b"other"}, "another cluster"),
        ({"version": 0}, "install the same zray"),
        ({"python": "2.7"}, "same minor version"),
        ({"pid": 0}, "no sense"),
        ({"pid": -1}, "no sense"),
        ({"pid": 1 << 40}, "no sense"),
        ({"sender": b""}, "no sense"),
    ],
)
def test_an_introduction_that_does_not_fit_is_refused_with_the_reason(
    make: Any, raw: Any, changed: dict[str, Any], reason: str
) -> None:
    a = make("a")
    socket = raw(a)
    socket.send(encode_hello(hello(**changed)))
    socket.send(wire.encode([wire.pack(wire.ListNodes(1))]))
    turn_until(lambda: a.transport.counts.get("before hello"), a)
    assert socket.poll(30_000)
    ((op, text),) = pickle.loads(socket.recv())
    assert op == wire.OPS[wire.Refuse]
    assert reason in text
    assert (a.hellos, a.got) == ([], [])


def test_who_is_refused_knows_why(make: Any) -> None:
    a, b = make("a"), make("b", cluster=b"other")
    a.transport.dial(b.me, b.endpoint)
    turn_until(lambda: a.got, a, b)
    [(peer, (op, reason))] = a.got
    assert (peer, op) == (b.me, wire.OPS[wire.Refuse])
    assert "another cluster" in reason


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b"null",
        b"[" * 4000,
        b"[" * 5000,
        pickle.dumps([wire.pack(hello())]),
        wire.encode([wire.pack(wire.ListNodes(1))]),
        encode_hello(hello())[:-1],
        encode_hello(hello()) + b"x",
        encode_hello(hello(role=5)),
        encode_hello(hello(version="1")),
        encode_hello(hello(pid=1.5)),
        encode_hello(hello(endpoint="x" * 5000)),
        b'[1, "3.11", "zz", "00", "worker", "", 1]',
        b'[1, "3.11", 5, 5, "worker", "", 1]',
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
    ],
)
def test_a_first_frame_that_is_no_introduction_is_counted_and_a_later_one_is_heard(make: Any, raw: Any, frame: bytes) -> None:
    a = make("a")
    socket = raw(a)
    socket.send(frame)
    turn_until(lambda: a.transport.counts == {"before hello": 1}, a)
    socket.send(encode_hello(hello()))
    socket.send(wire.encode([wire.pack(wire.ListNodes(1))]))
    turn_until(lambda: a.got, a)


def test_an_introduction_survives_its_encoding() -> None:
    for each in (hello(), hello(sender=bytes(range(16)), endpoint="ipc:///tmp/ä\udcff")):
        assert decode_hello(encode_hello(each)) == each


def bad_frames() -> list[bytes]:
    batch = wire.encode([wire.pack(wire.ListNodes(1))])
    return [
        b"",
        b"garbage",
        batch[:-1],
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x05X\xff\xff\xff\x7f.",
        b"(" * 10_000,
        b"cos\nsystem\n(S'true'\ntR.",
        pickle.dumps(5),
        pickle.dumps({}),
        pickle.dumps((1, 2)),
        pickle.dumps(ValueError()),
    ]


@pytest.mark.parametrize("plain", [True, False])
def test_garbage_from_a_peer_is_counted(make: Any, raw: Any, plain: bool) -> None:
    a = make("a", plain=plain)
    socket = raw(a)
    socket.send(encode_hello(hello()))
    frames = [frame for frame in bad_frames() if plain or b"system" not in frame]
    for frame in frames:
        socket.send(frame)
    socket.send_multipart([b"two", b"frames"])
    socket.send(wire.encode([(wire.OPS[wire.Refuse],)]))
    socket.send(wire.encode([(wire.OPS[wire.ListNodes], "the last")]))
    turn_until(lambda: a.got and a.got[-1][1][-1] == "the last", a)
    assert sum(a.transport.counts.values()) == len(frames) + 1


def test_nobody_can_have_a_class_made(make: Any, raw: Any, tmp_path: Any) -> None:
    class Malicious:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    a = make("a")
    socket = raw(a)
    socket.send(pickle.dumps([Malicious()]))
    socket.send(encode_hello(hello()))
    socket.send(pickle.dumps([Malicious()]))
    socket.send(wire.encode([wire.pack(wire.ListNodes(1))]))
    turn_until(lambda: a.got, a)
    assert a.transport.counts == {"before hello": 1, "undecodable": 1}
    assert not (tmp_path / "made").exists()


def test_a_frame_that_is_too_large_ends_that_connection_only(make: Any, raw: Any) -> None:
    a = make("a")
    good, bad = raw(a), raw(a)
    bad.send(encode_hello(hello(sender=b"bad")))
    turn_until(lambda: a.hellos, a)
    bad.send(bytes(2 << 20))
    good.send(encode_hello(hello()))
    good.send(wire.encode([wire.pack(wire.ListNodes(1))]))
    turn_until(lambda: a.got, a)
    assert a.got == [(hello().sender, (wire.OPS[wire.ListNodes], 1))]


def test_two_connections_of_one_peer_are_both_heard_and_the_newer_is_answered(make: Any, raw: Any) -> None:
    a = make("a")
    first, second = raw(a), raw(a)
    first.send(encode_hello(hello()))
    turn_until(lambda: len(a.hellos) == 1, a)
    second.send(encode_hello(hello()))
    second.send(wire.encode([wire.pack(wire.ListNodes(1))]))
    turn_until(lambda: a.got, a)
    a.transport.send(hello().sender, wire.Reply(1, True, None))
    a.loop.turn(0.0)
    assert second.poll(30_000)
    assert not first.poll(0)


def test_hundreds_of_peers(make: Any, raw: Any) -> None:
    a = make("a")
    for i in range(200):
        socket = raw(a)
        socket.send(encode_hello(hello(sender=b"%016d" % i)))
        socket.send(wire.encode([wire.pack(wire.ListNodes(i))]))
    turn_until(lambda: len(a.got) == 200, a)
    assert {peer: message[1] for peer, message in a.got} == {b"%016d" % i: i for i in range(200)}


def test_closing_with_words_unsent_does_not_wait(make: Any) -> None:
    a = make("a", bound=False)
    a.transport.dial(b"nobody".ljust(16), "ipc:///tmp/there-is-nobody-here")
    for _ in range(100):
        a.transport.send(b"nobody".ljust(16), wire.ListNodes(1))
    a.loop.turn(0.0)
