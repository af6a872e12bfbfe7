"""Connections over tcp that break and are made again, between ends that live, or were started anew."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
from ends import LOOPBACK, SAY, End, batch, hello, port_of, turn_until
from relay import Relay

from zray.base import wire
from zray.io.conversation import Conversation


@pytest.fixture
def relayed(make: Any, key: Any) -> Iterator[tuple[End, End, Relay]]:
    """Who dials, who listens, and what is between them."""
    a, b = make("a", bound=False, tcp=LOOPBACK, key=key), make("b", bound=False, tcp=LOOPBACK, key=key)
    relay = Relay(port_of(b))
    a.transport.dial(b.me, relay.place)
    yield a, b, relay
    relay.close()


def numbers(end: End) -> list[int]:
    return [message[1] for _, message in end.got]


def both_say(a: End, b: End, number: int) -> int:
    for one, other in ((a, b), (b, a)):
        if other.me in one.transport.links:
            one.transport.send(other.me, (SAY, number))
    return 1


@pytest.mark.parametrize("reset", [False, True])
def test_nothing_is_lost_or_said_twice_when_connections_break(relayed: Any, reset: bool) -> None:
    a, b, relay = relayed
    chance = random.Random(5)
    said = 0
    for _ in range(6):
        while relay.connections == 0 or chance.random() < 0.95:
            said += both_say(a, b, said)
            a.loop.turn(0.001)
            if chance.random() < 0.5:
                relay.turn()
            b.loop.turn(0.001)
        relay.carry_part(chance.randrange(200))
        relay.break_all(reset)
        connections = relay.connections
        turn_until(lambda connections=connections: relay.connections > connections, a, b, relay=relay)
    turn_until(lambda: b.hellos, a, b, relay=relay)
    said += both_say(a, b, said)
    turn_until(lambda: numbers(b)[-1:] == numbers(a)[-1:] == [said - 1], a, b, relay=relay)
    assert numbers(b) == list(range(said))
    assert numbers(a) == list(range(numbers(a)[0], said)), "from the introduction on"
    assert (a.broken, b.broken) == ([], [])
    assert len(b.hellos) == 1


def test_who_only_waits_hears_what_was_said_while_the_connection_was_broken(relayed: Any) -> None:
    a, b, relay = relayed
    a.transport.send(b.me, (SAY, 1))
    turn_until(lambda: b.got, a, b, relay=relay)
    relay.break_all()

    def say() -> bool:
        b.transport.send(a.me, (SAY, 1))
        return bool(b.lost)

    turn_until(say, b)
    b.transport.send(a.me, (SAY, 2))
    turn_until(lambda: numbers(a)[-1:] == [2], a, b, relay=relay)
    assert set(numbers(a)[:-1]) == {1} and b.lost == [a.me]


def test_a_link_that_is_cut_and_heals_goes_on(relayed: Any) -> None:
    a, b, relay = relayed
    a.transport.send(b.me, (SAY, 0))
    turn_until(lambda: b.got, a, b, relay=relay)
    relay.cut = True
    for number in range(1, 100):
        a.transport.send(b.me, (SAY, number))
        b.transport.send(a.me, (SAY, number))
        for end in (a, b):
            end.loop.turn(0.001)
    assert (numbers(a), numbers(b)) == ([], [0])
    relay.cut = False
    turn_until(lambda: numbers(b)[-1] == numbers(a)[-1:] == 99 or len(a.got) + len(b.got) == 199, a, b, relay=relay)
    assert (numbers(a), numbers(b)) == (list(range(1, 100)), list(range(100)))
    assert relay.connections == 1


def test_what_was_confirmed_is_not_kept(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, key=key), make("b", tcp=LOOPBACK, key=key)
    a.transport.dial(b.me, b.tcp)
    kept = lambda end, other: len(end.transport.links[other.me].talk)  # noqa: E731
    for number in range(500):
        a.transport.send(b.me, (SAY, number))
        turn_until(lambda number=number: len(b.got) == number + 1, a, b)
        assert kept(a, b) <= 64
    a.transport.send(b.me, wire.Reply(1, True, bytes(1 << 19)))
    a.transport.flush()
    a.transport.send(b.me, wire.Reply(1, True, bytes(1 << 19)))
    turn_until(lambda: kept(a, b) == 0, a, b)


@pytest.mark.parametrize("watched", [False, True])
def test_a_peer_that_was_started_anew_at_the_same_place(make: Any, key: Any, watched: bool) -> None:
    a, b = make("a", bound=False, key=key), make("b", bound=False, tcp=LOOPBACK, key=key)
    a.transport.dial(b.me, b.endpoint, watched)
    a.transport.send(b.me, (SAY, 1))
    turn_until(lambda: b.got, a, b)
    b.transport.send(a.me, (SAY, 1))  # with it a hears that b has heard it
    turn_until(lambda: a.got, a, b)
    a.transport.on_broken = lambda peer: (a.broken.append(peer), a.transport.send(peer, (SAY, 0)))
    b.close()
    if watched:
        turn_until(lambda: a.lost, a)
    a.transport.send(b.me, (SAY, 2))
    a.loop.turn(0.001)
    again = make("b", bound=False, tcp=("127.0.0.1", port_of(b), ""), key=key)
    a.transport.send(b.me, (SAY, 3))
    turn_until(lambda: len(again.got) == 3, a, again)
    assert numbers(again) == [0, 2, 3], "what is said because of it comes first, and what nobody has heard is said again"
    assert [each.sender for each in again.hellos] == [a.me]
    assert a.broken == [b.me]
    assert a.transport.counts == {"begun anew": 1}
    again.transport.send(a.me, (SAY, 3))
    turn_until(lambda: len(a.got) == 2, a, again)


def test_who_was_hung_up_on_begins_anew(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, key=key), make("b", tcp=LOOPBACK, key=key)
    a.transport.dial(b.me, b.tcp)
    a.transport.send(b.me, (SAY, 1))
    turn_until(lambda: b.got, a, b)
    b.transport.send(a.me, (SAY, 1))
    turn_until(lambda: a.got, a, b)
    b.transport.hang_up(a.me)
    assert not b.transport.send(a.me, (SAY, 2))
    a.transport.send(b.me, (SAY, 2))
    turn_until(lambda: len(b.got) == 2, a, b)
    assert (a.broken, len(b.hellos)) == ([b.me], 2)


def test_answers_to_earlier_introductions_are_no_answers(make: Any, raw: Any) -> None:
    """Who is asked twice says twice who it is, and may be told twice that it is not known."""
    server = make("server", tcp=LOOPBACK)
    stranger = raw(server.tcp)
    for _ in range(2):
        stranger.send(hello(b"peer", conversation=1, heard=5))
    turn_until(lambda: stranger.poll(1), server)
    assert stranger.recv() == b"!1"
    turn_until(lambda: stranger.poll(1), server)
    assert stranger.recv() == b"!1" and server.hellos == []
    for conversation in (2, 3):
        stranger.send(hello(b"peer", conversation))
        stranger.send(Conversation(conversation).say(batch(conversation)))
    turn_until(lambda: len(server.got) == 2, server)
    server.transport.send(b"peer", (SAY, 4))
    frames: list[bytes] = []

    def hear() -> bool:
        if stranger.poll(1):
            frames.append(stranger.recv())
        return len(frames) == 3

    turn_until(hear, server)
    assert [Conversation(3).hear(frame) is None for frame in frames] == [True, True, False]


def test_each_connection_is_asked_once(make: Any, raw: Any) -> None:
    a = make("a", bound=False, tcp=LOOPBACK)
    stranger, talk = raw(a), Conversation(1)
    for number in range(100):
        stranger.send(batch(number))
    turn_until(lambda: a.transport.counts == {"before hello": 100}, a)
    assert stranger.recv() == b"?"
    stranger.send(hello(b"stranger"))
    stranger.send(hello(b"stranger"))
    stranger.send(b"no hello")
    stranger.send(talk.say(batch(7)))
    turn_until(lambda: a.got, a)
    assert len(a.hellos) == 1
    assert a.transport.counts == {"before hello": 100, "undecodable": 1}
    words = [stranger.recv(), stranger.recv()]
    assert [talk.hear(word) for word in words] == [None, None] and not stranger.poll(0)


def test_who_was_refused_is_not_asked_again(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, cluster=b"other", key=key), make("b", tcp=LOOPBACK, key=key)
    a.transport.on_broken = lambda peer: a.transport.send(peer, (SAY, 99))
    a.transport.dial(b.me, b.tcp)
    for number in range(10):
        a.transport.send(b.me, (SAY, number))
        a.transport.flush()
    turn_until(lambda: a.got and b.transport.counts.get("before hello") == 10, a, b)
    assert b.transport.counts == {"refused": 1, "before hello": 10}
    assert [message[0] for _, message in a.got] == [wire.OPS[wire.Refuse]]
    assert a.transport.counts == {}


def test_without_a_conversation_nobody_is_admitted(make: Any, raw: Any) -> None:
    a = make("a", bound=False, tcp=LOOPBACK)
    stranger = raw(a)
    stranger.send(hello(b"stranger", conversation=0))
    turn_until(lambda: a.transport.counts == {"refused": 1}, a)
    assert a.hellos == []


def test_a_peer_that_hung_up_and_dialled_again_is_answered(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, key=key), make("b", tcp=LOOPBACK, key=key)
    for number in range(10):
        a.transport.dial(b.me, b.tcp)
        a.transport.send(b.me, (SAY, number))
        turn_until(lambda number=number: b.got and b.got[-1][1][1] == number, a, b)
        b.transport.send(a.me, (SAY, number))
        turn_until(lambda number=number: a.got and a.got[-1][1][1] == number, a, b)
        a.transport.hang_up(b.me)
    assert len(b.transport.links[a.me].channel.accepted) <= 4
    assert b.transport.counts == {}


def test_what_waits_for_a_broken_connection_goes_over_the_next(make: Any, raw: Any) -> None:
    server = make("server", tcp=LOOPBACK)
    first = raw(server.tcp)
    first.send(hello(b"peer", 1))
    turn_until(lambda: server.hellos, server)
    server.transport.alias(b"name", b"peer")
    server.transport.send(b"peer", (SAY, 1))  # and nothing is sent before the end of the turn
    second = raw(server.tcp)
    second.send(hello(b"peer", 2))
    turn_until(lambda: len(server.hellos) == 2, server)
    server.transport.send(b"name", (SAY, 2))
    server.loop.turn(0.0)
    said: list[Any] = []
    talks = {first: Conversation(1), second: Conversation(2)}
    while len(said) < 2:
        for each, talk in talks.items():
            content = talk.hear(each.recv()) if each.poll(10) else None
            said += pickle.loads(content) if content else []
    assert said == [(SAY, 1), (SAY, 2)]


def test_those_who_came_and_went_are_forgotten(make: Any, raw: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("zray.io.transport._AWAY_S", 0.0)
    server = make("server", tcp=LOOPBACK)
    stays, talk = raw(server.tcp), Conversation(1)
    stays.send(hello(b"stays"))
    turn_until(lambda: server.hellos, server)
    for number in range(200):
        one = raw(server.tcp)
        one.send(hello(b"guest %d" % number))
        turn_until(lambda number=number: len(server.hellos) == number + 2, server)
        one.close(0)
    assert len(server.transport.links) < 150
    stays.send(talk.say(batch(1)))
    turn_until(lambda: server.got, server)
    assert server.got == [(b"stays", (SAY, 1))] and b"stays" in server.transport.links
