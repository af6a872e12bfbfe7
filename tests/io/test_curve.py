"""Who comes in over tcp: only who has the key of the cluster. The others are counted, told why, and never heard."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import Any

import pytest
import zmq
from ends import CLUSTER, End, turn_until

from zray.base import wire
from zray.io import handshake
from zray.io.cluster_key import ClusterKey
from zray.io.greeting import PYTHON, encode_hello
from zray.io.handshake import KEY_NEEDED, KEY_UNUSED, WRONG_KEY

LOOPBACK = ("127.0.0.1", 0, "")
KEY = ClusterKey.create("127.0.0.1:1", CLUSTER)
OTHER = ClusterKey.create("127.0.0.1:1", CLUSTER)
# Knows the cluster's server key, as somebody may who once saw it, and has a key of his own.
INTRUDER = dataclasses.replace(KEY, client_public=OTHER.client_public, client_secret=OTHER.client_secret)
SAY = wire.OPS[wire.ListNodes]
FAILED = "failed handshakes"


@pytest.fixture
def server(make: Any) -> End:
    return make("server", tcp=LOOPBACK, key=KEY)


def call(end: End, server: End) -> None:
    end.transport.dial(server.me, server.tcp, watched=True)
    end.transport.send(server.me, (SAY, 1))


def test_with_the_right_key(make: Any, server: End) -> None:
    a = make("a", bound=False, key=KEY)
    call(a, server)
    turn_until(lambda: server.got, a, server)
    server.transport.send(a.me, wire.Reply(1, True, None))
    turn_until(lambda: a.got, a, server)
    assert (a.refused, a.transport.counts, server.transport.counts) == ([], {}, {})


@pytest.mark.parametrize(
    ("key", "reason"),
    [(None, KEY_NEEDED), (OTHER, WRONG_KEY), (INTRUDER, WRONG_KEY)],
    ids=["no key", "the key of another cluster", "a client key that is not ours"],
)
def test_without_the_right_key(make: Any, server: End, key: Any, reason: str) -> None:
    bad, good = make("bad", bound=False, key=key), make("good", bound=False, key=KEY)
    call(bad, server)
    turn_until(lambda: bad.refused, bad, server)
    assert bad.refused == [(server.me, reason)]
    assert (server.decoded, server.hellos, server.got) == (0, [], [])
    assert server.transport.counts[FAILED] >= 1
    assert set(server.transport.counts) == {FAILED}
    call(good, server)
    turn_until(lambda: server.got, bad, good, server)
    assert [peer for peer, _ in server.got] == [good.me]
    assert good.refused == []


def test_a_key_for_a_cluster_that_has_none(make: Any) -> None:
    server, a = make("server", tcp=LOOPBACK), make("a", bound=False, key=KEY)
    call(a, server)
    turn_until(lambda: a.refused, a, server)
    assert a.refused[0][1] in (KEY_UNUSED, WRONG_KEY)  # depends on whether its greeting came before it hung up
    assert (server.decoded, server.hellos) == (0, [])


def test_an_impostor_in_the_place_of_the_server_learns_nothing(make: Any) -> None:
    """It has the client's key, and even the server's public one; but not the server's secret."""
    impostor = make("server", tcp=LOOPBACK, key=dataclasses.replace(OTHER, client_public=KEY.client_public))
    a = make("a", bound=False, key=KEY)
    call(a, impostor)
    turn_until(lambda: a.refused, a, impostor)
    assert a.refused == [(impostor.me, WRONG_KEY)]
    assert (impostor.decoded, impostor.hellos) == (0, [])


def test_all_public_keys_are_not_enough(make: Any, raw: Any, server: End) -> None:
    """Somebody shows the client's public key without its secret."""
    mine = zmq.curve_keypair()
    one = raw(
        server.tcp,
        CURVE_SERVERKEY=KEY.server_public.encode(),
        CURVE_PUBLICKEY=KEY.client_public.encode(),
        CURVE_SECRETKEY=mine[1],
    )
    one.send(encode_hello(wire.Hello(wire.PROTOCOL_VERSION, PYTHON, CLUSTER, b"x", "worker", "", os.getpid())))
    turn_until(lambda: server.transport.counts.get(FAILED), server)
    assert (server.decoded, server.hellos) == (0, [])


def test_a_process_of_the_same_session_needs_no_key(make: Any, server: End) -> None:
    a = make("a")
    a.transport.dial(server.me, server.endpoint)
    a.transport.send(server.me, (SAY, 1))
    turn_until(lambda: server.got, a, server)


def test_another_cluster_with_the_same_key_is_refused_all_the_same(make: Any, server: End) -> None:
    a = make("a", bound=False, key=KEY, cluster=b"other")
    call(a, server)
    turn_until(lambda: a.got, a, server)
    assert "another cluster" in a.got[0][1][1]
    assert server.hellos == []


def test_many_come_at_once_and_every_other_has_the_wrong_key(make: Any, server: End) -> None:
    ends = [make(f"a{number}", bound=False, key=INTRUDER if number % 2 else KEY) for number in range(40)]
    for end in ends:
        call(end, server)
    turn_until(lambda: len(server.got) == 20 and server.transport.counts.get(FAILED) == 20, server, *ends)
    turn_until(lambda: all(end.refused for end in ends[1::2]), server, *ends)
    assert {peer for peer, _ in server.got} == {end.me for end in ends[::2]}
    assert not any(end.refused for end in ends[::2])


def test_who_comes_and_goes_is_no_failure(make: Any, server: End) -> None:
    for number in range(20):
        a = make(f"a{number}", bound=False, key=KEY)
        call(a, server)
        turn_until(lambda number=number: len(server.got) == number + 1, a, server)
        a.close()
    bad = make("bad", bound=False, key=INTRUDER)  # whatever those who left have to say was said before this
    call(bad, server)
    turn_until(lambda: server.transport.counts.get(FAILED), bad, server)
    assert server.transport.counts == {FAILED: 1}


def knock(server: End, count: int) -> None:
    """Connections that fail, one after the other."""
    for _ in range(count):
        before = server.transport.counts.get(FAILED, 0)
        with socket.create_connection(("127.0.0.1", int(server.tcp.rpartition(":")[2]))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            turn_until(lambda before=before: server.transport.counts.get(FAILED, 0) > before, server)


def test_failures_are_logged_seldom(server: End, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(handshake, "_LOG_INTERVAL_S", 1e9)
    knock(server, 50)
    assert [line.split("; ")[0][-3:] for line in caplog.messages] == [": 1"]
    monkeypatch.setattr(handshake, "_LOG_INTERVAL_S", 0.0)
    knock(server, 1)
    assert [line.split("; ")[0][-3:] for line in caplog.messages] == [": 1", " 50"]
    assert server.transport.counts == {FAILED: 51}


def test_the_log_names_who_has_a_wrong_key_and_no_key(make: Any, server: End, caplog: Any) -> None:
    a = make("a", bound=False, key=INTRUDER)
    call(a, server)
    turn_until(lambda: a.refused and caplog.messages, a, server)
    assert "127.0.0.1 shows a key that is not the cluster's" in caplog.messages[0]
    everything = " ".join([*caplog.messages, repr(KEY), str(KEY), repr(server.transport.__dict__)])
    for secret in dataclasses.astuple(KEY)[2:] + dataclasses.astuple(OTHER)[2:]:
        assert secret not in everything


def test_a_process_that_ends_while_others_come(make: Any) -> None:
    """Its sockets close in the middle of handshakes, questions and messages."""
    for number in range(10):
        server = make(f"server{number}", tcp=LOOPBACK, key=KEY)
        ends = [make(f"a{number}-{each}", bound=False, key=KEY if each % 2 else INTRUDER) for each in range(6)]
        for end in ends:
            call(end, server)
        for _ in range(number):
            server.loop.turn(0.001)
        server.close()
        for end in ends:
            end.loop.turn(0.0)
            end.close()
