"""Peers on other machines: endpoints of two places, connections that break and are made again, and addresses that are none."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from typing import Any

import pytest
from ends import LOOPBACK, SAY, batch, hello, port_of, turn_until

from zray.base import wire
from zray.io import endpoint
from zray.io.conversation import Conversation
from zray.io.door import Door
from zray.io.handshake import NO_ANSWER, NO_CLUSTER


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
    assert a.got == [(b.me, (wire.OPS[wire.Reply], 1, True, [1, 2]))]
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


@pytest.mark.parametrize("size", [(1 << 18) - 100, 1 << 18, (1 << 20) - 58, 3 << 20])
def test_what_is_large_comes_whole(make: Any, key: Any, size: int) -> None:
    a, b = make("a", bound=False, key=key), make("b", tcp=LOOPBACK, key=key)
    data = os.urandom(size)
    a.transport.dial(b.me, b.tcp)
    a.transport.send(b.me, wire.Reply(1, True, data))
    a.transport.send(b.me, (SAY, 2))
    turn_until(lambda: len(b.got) == 2, a, b)
    b.transport.send(a.me, wire.Reply(3, True, data))
    b.loop.turn(0.0)
    b.transport.send(a.me, (SAY, 4))
    turn_until(lambda: len(a.got) == 2, a, b)
    assert [message for _, message in b.got] == [(wire.OPS[wire.Reply], 1, True, data), (SAY, 2)]
    assert [message for _, message in a.got] == [(wire.OPS[wire.Reply], 3, True, data), (SAY, 4)]
    assert (a.transport.counts, b.transport.counts) == ({}, {})


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
    """Some dozens that are silent, or stop in the middle of a greeting."""
    server, a = make("server", tcp=LOOPBACK, key=key), make("a", bound=False, key=key)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01"
    half_open = []
    for number in range(60):
        half_open.append(socket.create_connection(("127.0.0.1", port_of(server))))
        half_open[-1].sendall(greeting[: number % len(greeting)])
        server.loop.turn(0.0)
    a.transport.dial(server.me, server.tcp)
    a.transport.send(server.me, (SAY, 1))
    turn_until(lambda: server.got, a, server)
    assert server.got == [(a.me, (SAY, 1))]
    for each in half_open:
        each.close()
    turn_until(lambda: server.transport.counts.get("failed handshakes") == 60, server)


def test_when_too_many_knock_the_door_is_shut_for_a_moment(make: Any, key: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(Door(listener.fileno())) as door:
        if not door.shut():
            pytest.skip("this system has no filters for sockets")
    server, friend, late = (make(name, tcp=LOOPBACK, bound=False, key=key) for name in ("server", "friend", "late"))
    friend.transport.dial(server.me, server.tcp)
    friend.transport.send(server.me, (SAY, 1))
    turn_until(lambda: server.got, server, friend)
    before = len(os.listdir("/proc/self/fd"))
    strangers = [socket.socket() for _ in range(1000)]
    for stranger in strangers:
        stranger.setblocking(False)
        stranger.connect_ex(("127.0.0.1", port_of(server)))
        server.loop.turn(0.0)
    turn_until(lambda: server.transport.counts.get("door shut"), server)
    taken = len(os.listdir("/proc/self/fd")) - before - len(strangers)
    assert taken < 600, "those who come later wait outside"
    friend.transport.send(server.me, (SAY, 2))
    turn_until(lambda: len(server.got) == 2, server, friend)
    for stranger in strangers:
        stranger.close()
    late.transport.dial(server.me, server.tcp)
    late.transport.send(server.me, (SAY, 3))
    turn_until(lambda: len(server.got) == 3, server, late)
    assert late.refused == []


def test_many_peers_that_come_at_once_all_get_in(make: Any, key: Any) -> None:
    server = make("server", tcp=LOOPBACK, key=key)
    ends = [make(f"a{number}", bound=False, key=key) for number in range(150)]
    for end in ends:
        end.transport.dial(server.me, server.tcp, watched=True)
        end.transport.send(server.me, (SAY, 1))
        end.transport.flush()
    turn_until(lambda: len(server.got) == len(ends), server, *ends)
    assert not any(end.refused for end in ends)
    assert "failed handshakes" not in server.transport.counts


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
    assert server.transport.counts == {"before hello": 2}
