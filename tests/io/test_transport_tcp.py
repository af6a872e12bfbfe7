"""Peers on other machines: endpoints of two places, connections that break and are made again, and addresses that are none."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from ends import CLUSTER, End, turn_until
from relay import Relay

from zray.base import wire
from zray.io import endpoint
from zray.io.cluster_key import ClusterKey
from zray.io.conversation import NEVER, Conversation
from zray.io.greeting import PYTHON, encode_hello
from zray.io.handshake import NO_ANSWER, NO_CLUSTER

LOOPBACK = ("127.0.0.1", 0, "")
KEY = ClusterKey.create("127.0.0.1:1")
SAY = wire.OPS[wire.ListNodes]


@pytest.fixture(params=["insecure", "CURVE"])
def key(request: Any) -> ClusterKey | None:
    return KEY if request.param == "CURVE" else None


def hello(sender: bytes, conversation: int = 1, heard: int = NEVER) -> bytes:
    me = (wire.PROTOCOL_VERSION, PYTHON, CLUSTER, sender, "worker", "", os.getpid())
    return encode_hello(wire.Hello(*me, conversation, heard))


def batch(number: int) -> bytes:
    return wire.encode([(SAY, number)])


def port_of(end: End) -> int:
    return int(end.tcp.rpartition(":")[2])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- endpoints --------------------------------------------------------------------------------------------------------

IPC, TCP = "ipc:///tmp/s-a/w1", "tcp://10.0.0.5:40123"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (IPC, (IPC, "")),
        (TCP, ("", TCP)),
        (f"{IPC} {TCP}", (IPC, TCP)),
        (f"ipc:///tmp/my dir/w1 {TCP}", ("ipc:///tmp/my dir/w1", TCP)),
        ("ipc:///tmp/my dir/w1", ("ipc:///tmp/my dir/w1", "")),
        ("tcp://head.example.org:6379", ("", "tcp://head.example.org:6379")),
        ("tcp://[::1]:6379", ("", "tcp://[::1]:6379")),
        ("tcp://[fe80::1%eth0]:6379", ("", "tcp://[fe80::1%eth0]:6379")),
        (f"{IPC} tcp://nonsense", (IPC, "")),
        ("", ("", "")),
        ("ipc://", ("", "")),
        ("inproc://x", ("", "")),
        ("10.0.0.5:1", ("", "")),
        ("tcp://h", ("", "")),
        ("tcp://h:0", ("", "")),
        ("tcp://h:*", ("", "")),
        ("tcp://h:65536", ("", "")),
        ("tcp://h:-1", ("", "")),
        ("tcp://x:y:z", ("", "")),
        ("tcp://::1:5", ("", "")),
        ("tcp://a b:5", ("", "")),
        ("tcp://10.0.0.1:5;10.0.0.2:6", ("", "")),
        ("tcp://h:\u0665", ("", "")),
        ("tcp://\udcff:5", ("", "")),
        (f"{TCP} {TCP}", ("", "")),
        (f"{TCP} {IPC}", ("", "")),
    ],
)
def test_the_places_of_an_endpoint(text: str, places: tuple[str, str]) -> None:
    assert endpoint.places(text) == places


def test_the_ipc_place_is_for_those_of_the_same_session() -> None:
    both = f"{IPC} {TCP}"
    assert endpoint.choose(both, "/tmp/s-a") == IPC
    assert endpoint.choose(both, "/tmp/s-b") == TCP
    assert endpoint.choose(both, endpoint.directory_of("")) == TCP
    assert endpoint.choose(IPC, "/tmp/s-b") == IPC  # there is no other
    assert endpoint.choose(TCP, "/tmp/s-a") == TCP
    assert endpoint.choose("nonsense", "/tmp/s-a") == ""


def test_the_endpoint_tells_the_real_port_and_the_host_that_was_chosen(make: Any, short_path: str) -> None:
    a = make("a", tcp=("0.0.0.0", 0, "10.0.0.5"))
    assert a.endpoint == f"ipc://{short_path}/a tcp://10.0.0.5:{port_of(a)}"
    with socket.create_connection(("127.0.0.1", port_of(a))):
        pass
    assert make("b", tcp=LOOPBACK, bound=False).endpoint.startswith("tcp://127.0.0.1:")
    assert make("c", tcp=("127.0.0.1", 0, "fd00::1")).tcp.startswith("tcp://[fd00::1]:")
    assert make("d").endpoint == f"ipc://{short_path}/d"


@pytest.mark.parametrize("host", ["", "*", "0.0.0.0", "::", "[::]"])
def test_others_must_be_told_an_address(make: Any, host: str) -> None:
    with pytest.raises(ValueError, match="under which address"):
        make("a", tcp=(host, 0, ""))
    assert port_of(make("b", tcp=(host, 0, "127.0.0.1")))


def test_a_place_that_can_not_be_bound_is_told(make: Any, key: Any) -> None:
    a = make("a", tcp=LOOPBACK, key=key)
    with pytest.raises(OSError, match=rf"can not listen at tcp://127.0.0.1:{port_of(a)}: Address already in use"):
        make("b", tcp=("127.0.0.1", port_of(a), ""), key=key)
    with pytest.raises(OSError, match="can not listen"):
        make("c", tcp=("192.0.2.1", 0, ""), key=key)  # an address that no machine has
    with pytest.raises(OSError, match="can not listen"):
        make("d", path="/no/such/directory")


def test_a_dial_to_what_is_no_address(make: Any) -> None:
    a = make("a", tcp=LOOPBACK)
    for text in ("", "nonsense", "inproc://x", "tcp://h:0", "ipc://" + "x" * 200):
        a.transport.dial(b"quiet", text)
        assert not a.transport.send(b"quiet", wire.ListNodes(1))
        a.transport.dial(b"watched", text, watched=True)
        assert a.refused[-1][0] == b"watched"
        assert repr(text) in a.refused[-1][1]
    assert a.transport.counts == {"to a bad address": 10, "to an unknown peer": 5}


# -- messages ---------------------------------------------------------------------------------------------------------


def test_messages_go_both_ways_and_keep_their_order(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, tcp=LOOPBACK, key=key), make("b", tcp=LOOPBACK, key=key)
    a.transport.dial(b.me, b.endpoint)
    for i in range(10_000):
        a.transport.send(b.me, (SAY, i))
        if i % 1000 == 0:
            a.loop.turn(0.0)
    turn_until(lambda: len(b.got) == 10_000, a, b)
    assert [message[1] for _, message in b.got] == list(range(10_000))
    assert b.hellos[0].endpoint == a.endpoint
    b.transport.send(a.me, wire.Reply(1, True, [1, 2]))
    turn_until(lambda: a.got, a, b)
    assert a.got == [(b.me, (wire.REPLY, 1, True, [1, 2]))]
    assert (a.transport.counts, b.transport.counts) == ({}, {})


def test_each_takes_the_place_that_fits(make: Any, tmp_path_factory: Any, key: Any) -> None:
    server = make("server", tcp=LOOPBACK, key=key)
    near, far = make("near", tcp=LOOPBACK, key=key), make("far", bound=False, tcp=LOOPBACK, key=key)
    for number, end in enumerate((near, far)):
        end.transport.dial(server.me, server.endpoint)
        end.transport.send(server.me, (SAY, number))
    turn_until(lambda: len(server.got) == 2, near, far, server)
    assert not near.transport.links[server.me].channel.remote
    assert far.transport.links[server.me].channel.remote
    for end in (near, far):
        server.transport.send(end.me, wire.Reply(1, True, end.me))
    turn_until(lambda: near.got and far.got, near, far, server)
    assert (near.got[0][1][3], far.got[0][1][3]) == (near.me, far.me)


def test_a_frame_is_of_who_sent_it_although_both_sockets_know_the_same_routing_id(make: Any, raw: Any) -> None:
    server = make("server", tcp=LOOPBACK)
    ipc, tcp = server.endpoint.split()
    ends = [raw(ipc, ROUTING_ID=b"same"), raw(tcp, ROUTING_ID=b"same")]
    talk = Conversation(1)
    for number, each in enumerate(ends):
        each.send(hello(b"peer %d" % number))
        each.send(talk.say(batch(number)) if number else batch(number))
    turn_until(lambda: len(server.got) == 2, server)
    assert sorted(server.got) == [(b"peer %d" % number, (SAY, number)) for number in range(2)]
    for number in range(2):
        server.transport.send(b"peer %d" % number, wire.Reply(number, True, None))
    server.loop.turn(0.0)
    assert pickle.loads(ends[0].recv())[0][1] == 0
    assert talk.hear(ends[1].recv()) is None, "a word of welcome"
    assert pickle.loads(talk.hear(ends[1].recv()) or b"")[0][1] == 1
    server.transport.hang_up(b"peer 0")
    ends[1].send(talk.say(batch(5)))
    turn_until(lambda: len(server.got) == 3, server)
    assert server.got[-1] == (b"peer 1", (SAY, 5))


def test_ipv6(make: Any, key: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"there is no loopback of IPv6: {error}")
    for host in ("::1", "[::1]"):
        a, b = (make(name + host, tcp=(host, 0, ""), bound=False, key=key) for name in "ab")
        assert b.endpoint.startswith("tcp://[::1]:")
        a.transport.dial(b.me, b.endpoint)
        a.transport.send(b.me, (SAY, 1))
        turn_until(lambda b=b: b.got, a, b)


def test_listening_everywhere_serves_both_families(make: Any) -> None:
    b = make("b", tcp=("*", 0, "127.0.0.1"))
    hosts = ["127.0.0.1", "localhost", *(["[::1]"] if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6") else [])]
    ends = [make(f"a{number}", bound=False) for number in range(len(hosts))]
    for end, host in zip(ends, hosts):
        end.transport.dial(b.me, f"tcp://{host}:{port_of(b)}")
        end.transport.send(b.me, (SAY, 1))
    turn_until(lambda: len(b.got) == len(hosts), b, *ends)


def test_what_is_too_large_is_not_sent_and_breaks_nothing(make: Any, key: Any) -> None:
    a, b = make("a", bound=False, key=key), make("b", tcp=LOOPBACK, key=key)
    a.transport.dial(b.me, b.tcp)
    a.transport.send(b.me, (SAY, 1))
    turn_until(lambda: b.got, a, b)
    for one, other in ((a, b), (b, a)):
        one.transport.send(other.me, wire.Reply(1, True, bytes(2 << 20)))
        one.loop.turn(0.0)
        one.transport.send(other.me, (SAY, 2))
    turn_until(lambda: len(b.got) == 2 and a.got, a, b)
    assert (a.got, b.got[1]) == ([(b.me, (SAY, 2))], (a.me, (SAY, 2)))
    assert (a.transport.counts, b.transport.counts) == ({"too large": 1}, {"too large": 1})


def test_a_frame_that_is_too_large_ends_that_connection_only(make: Any, raw: Any) -> None:
    server, good = make("server", tcp=LOOPBACK), make("good", bound=False)
    good.transport.dial(server.me, server.tcp)
    bad, talk = raw(server.tcp), Conversation(1)
    for frame in (hello(b"bad"), talk.say(batch(1)), talk.say(bytes(2 << 20))):
        bad.send(frame)

    def say() -> bool:
        server.transport.send(b"bad", (SAY, 1))
        return bool(server.lost)

    turn_until(lambda: server.got, server)
    turn_until(say, server)
    good.transport.send(server.me, (SAY, 2))
    turn_until(lambda: len(server.got) == 2, server, good)
    assert (server.got, server.lost) == ([(b"bad", (SAY, 1)), (good.me, (SAY, 2))], [b"bad"])


# -- connections that break -------------------------------------------------------------------------------------------


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
    assert [message[0] for _, message in a.got] == [wire.REFUSE]
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


# -- watched ----------------------------------------------------------------------------------------------------------


def test_no_answer_is_told_once_and_then_somebody_listens(make: Any, key: Any) -> None:
    port = free_port()
    a = make("a", bound=False, key=key)
    late = b"late".ljust(16, b"-")
    a.transport.dial(late, f"tcp://127.0.0.1:{port}", watched=True)
    a.transport.send(late, (SAY, 1))
    turn_until(lambda: a.refused, a)
    assert a.refused == [(late, NO_ANSWER)]
    b = make("late", bound=False, tcp=("127.0.0.1", port, ""), key=key)
    turn_until(lambda: b.got, a, b)
    assert a.refused == [(late, NO_ANSWER)]
    assert a.broken == []


def test_a_name_that_nobody_has(make: Any) -> None:
    a = make("a", bound=False)
    a.transport.dial(b"nobody", "tcp://nobody.invalid:5", watched=True)
    turn_until(lambda: a.refused, a)
    assert a.refused == [(b"nobody", NO_ANSWER)]


def test_who_is_no_cluster(make: Any, key: Any) -> None:
    a = make("a", bound=False, key=key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        a.transport.dial(b"web", f"tcp://127.0.0.1:{server.getsockname()[1]}", watched=True)
        connection, _ = server.accept()
        with connection:
            connection.recv(10)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200))
            turn_until(lambda: a.refused, a)
    assert a.refused == [(b"web", NO_CLUSTER)]


def test_a_watched_peer_may_be_hung_up_on_when_it_refuses(make: Any) -> None:
    a = make("a", bound=False)
    a.transport.on_refused = lambda peer, reason: (a.refused.append((peer, reason)), a.transport.hang_up(peer))  # type: ignore
    a.transport.dial(b"nobody", f"tcp://127.0.0.1:{free_port()}", watched=True)
    turn_until(lambda: a.refused, a)
    assert a.transport.links == {}


def test_a_watched_peer_of_the_same_session(make: Any) -> None:
    a, b = make("a"), make("b", tcp=LOOPBACK)
    a.transport.dial(b.me, b.endpoint, watched=True)
    a.transport.send(b.me, (SAY, 1))
    turn_until(lambda: b.got, a, b)
    b.close()
    turn_until(lambda: a.lost and a.refused, a)
    assert (a.lost, a.refused) == ([b.me], [(b.me, NO_ANSWER)])


# -- strangers --------------------------------------------------------------------------------------------------------


def test_connections_that_say_nothing_keep_nobody_out(make: Any, key: Any) -> None:
    """Two hundred that are silent, or stop in the middle of a greeting."""
    server, a = make("server", tcp=LOOPBACK, key=key), make("a", bound=False, key=key)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01"
    half_open = []
    for number in range(200):
        half_open.append(socket.create_connection(("127.0.0.1", port_of(server))))
        half_open[-1].sendall(greeting[: number % len(greeting)])
        server.loop.turn(0.0)
    a.transport.dial(server.me, server.tcp)
    a.transport.send(server.me, (SAY, 1))
    turn_until(lambda: server.got, a, server)
    assert server.got == [(a.me, (SAY, 1))]
    for each in half_open:
        each.close()
    turn_until(lambda: server.transport.counts.get("failed handshakes") == 200, server)


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: zray\r\n\r\n",
    b"\x00" * 1000,
    b"\xff" * 1000,
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32 + b"\x04\xff" * 100,
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32 + b"\x04\xc8\x05HELLO" + bytes(300),
    b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"PLAIN".ljust(20, b"\0") + b"\0" * 32 + b"\x06" + b"\xff" * 8,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_garbage_on_the_port(make: Any, key: Any, number: int) -> None:
    server = make("server", tcp=LOOPBACK, key=key)
    with socket.create_connection(("127.0.0.1", port_of(server))) as stranger:
        stranger.sendall(GARBAGE[number])
        with contextlib.suppress(OSError):  # it may have been cut off already
            stranger.shutdown(socket.SHUT_WR)
        turn_until(lambda: server.transport.counts.get("failed handshakes"), server)
    assert (server.decoded, server.hellos) == (0, [])
    a = make("a", bound=False, key=key)
    a.transport.dial(server.me, server.tcp)
    a.transport.send(server.me, (SAY, 1))
    turn_until(lambda: server.got, a, server)


def test_a_bare_client_without_a_key_of_an_insecure_cluster_is_one_like_all(make: Any, raw: Any) -> None:
    server = make("server", tcp=LOOPBACK)
    one = raw(server.tcp)
    one.send_multipart([b"two", b"frames"])
    one.send(b"garbage")
    one.send(hello(b"peer"))
    one.send(Conversation(1).say(batch(1)))
    turn_until(lambda: server.got, server)
    assert server.transport.counts == {"malformed": 1, "before hello": 1}
