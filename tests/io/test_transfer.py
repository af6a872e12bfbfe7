"""Bytes between nodes: whole, in spite of broken links and lost sources, only with the key, and leaving nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from transfer_ends import HOST, PATIENCE_S, TransferEnd, Wire
from zmq.utils.garbage import gc as zero_copy

from zray.io.cluster_key import ClusterKey
from zray.io.handshake import NO_ANSWER, WRONG_KEY

MB = 1 << 20
PAGE = 4096
A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))
Make = Callable[..., TransferEnd]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes ends. pyzmq has one thread for what it sends without copying, for as long as the process lives: it ends here."""
    made: list[TransferEnd] = []

    def end(name: str, size: int = 4 * MB, key: ClusterKey | None = None, **options: Any) -> TransferEnd:
        made.append(TransferEnd(name, size, key, **options))
        return made[-1]

    yield end
    for each in made:
        each.close()
    zero_copy.stop()


@pytest.fixture
def wire() -> Iterator[Callable[..., Wire]]:
    made: list[Wire] = []

    def cable(end: TransferEnd, bytes_max: int) -> Wire:
        made.append(Wire(end.service.endpoint, bytes_max))
        return made[-1]

    yield cable
    for each in made:
        each.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """A file system of 1 MB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield str(tmp_path)
    subprocess.run(["umount", "-l", tmp_path], check=True)


# -- whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_a_hundred_megabytes_come_whole(make: Make, keyed: bool) -> None:
    key = ClusterKey.create("127.0.0.1:1") if keyed else None
    size = 100 * MB + 12345
    source, end = make("s", size + 8192, key), make("r", size + 8192, key)
    data = os.urandom(MB) * 100 + os.urandom(12345)
    source.service.serve(1, A, source.fill(4096, data))
    end.fetch(source, A, size, place=(8192, False))
    assert end.hear() == ("fetched", A, 0)
    assert end.look(8192, size) == data and end.look(0, 8192) == bytes(8192)
    assert end.service.statistics()["transfer_received_bytes"] == source.service.statistics()["transfer_sent_bytes"] == size


@pytest.mark.parametrize("size", [1, PAGE, 65536, MB - 1, MB, MB + 1, 3 * MB])
def test_any_size(make: Make, size: int) -> None:
    source, end = make("s"), make("r")
    data = os.urandom(size)
    source.service.serve(1, A, source.fill(0, data))
    end.fetch(source, A, size)
    assert end.hear() == ("fetched", A, 0) and end.look(0, size) == data


def test_several_at_once_in_both_directions_take_turns(make: Make) -> None:
    ends = [make(name, 64 * MB, chunk_bytes=100_000, window_bytes=400_000) for name in ("a", "b", "c")]
    data = {}
    for number in range(24):
        object_id = bytes([number]) * 20
        data[object_id] = os.urandom(10 if number % 5 == 0 else 300_000 + number * 1000)
        ends[number % 3].service.serve(number, object_id, ends[number % 3].fill(number * MB, data[object_id]))
    for object_id, value in data.items():
        number = object_id[0]
        end = ends[(number + 1 + number % 2) % 3]
        end.fetch(ends[number % 3], object_id, len(value), number, place=((30 + number) * MB, False))
    for end in ends:
        wanted = [o for o in data if ends[(o[0] + 1 + o[0] % 2) % 3] is end]
        assert sorted(end.hear() for _ in wanted) == sorted(("fetched", o, 0) for o in wanted)
        for object_id in wanted:
            assert end.look((30 + object_id[0]) * MB, len(data[object_id])) == data[object_id]


def test_a_small_one_does_not_wait_behind_a_large_one(make: Make) -> None:
    source, end = make("s", 300 * MB), make("r", 300 * MB, window_bytes=2 * MB)
    source.service.serve(1, A, (0, 200 * MB))
    source.service.serve(2, B, source.fill(250 * MB, b"small" * 50_000))
    end.fetch(source, A, 200 * MB)
    end.fetch(source, B, 250_000, 2, place=(250 * MB, False))
    assert [end.hear()[1] for _ in range(2)] == [B, A]


def test_one_source_serves_many_receivers(make: Make) -> None:
    source = make("s", 8 * MB)
    data = os.urandom(5 * MB)
    place = source.fill(0, data)
    ends = [make(f"r{n}", 8 * MB) for n in range(5)]
    for number, end in enumerate(ends):
        source.service.serve(number, A, place)
        end.fetch(source, A, len(data), number)
    for end in ends:
        assert end.hear() == ("fetched", A, 0) and end.look(0, len(data)) == data


# -- files ----------------------------------------------------------------------------------------------------------


def test_what_lies_in_a_file_is_sent_from_there_and_checked(make: Make, tmp_path: Path) -> None:
    source, end = make("s"), make("r")
    data = os.urandom(2 * MB + 5)
    (tmp_path / "x").write_bytes(b"before" + data + b"after")
    source.service.serve(1, A, (str(tmp_path / "x"), 6, len(data), zlib.crc32(data)))
    end.fetch(source, A, len(data), checksum=zlib.crc32(data))
    assert end.hear() == ("fetched", A, zlib.crc32(data)) and end.look(0, len(data)) == data
    source.service.unserve(1)
    assert source.hear() == ("unserved", 1)


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_file_is_a_failure_of_the_source(make: Make, tmp_path: Path, damage: str) -> None:
    source, end = make("s"), make("r")
    data = os.urandom(2 * MB)
    path = tmp_path / "x"
    path.write_bytes(data)
    source.service.serve(1, A, (str(path), 0, len(data), zlib.crc32(data)))
    if damage == "cut":
        os.truncate(path, 2 * MB - 1)
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    end.fetch(source, A, len(data), checksum=zlib.crc32(data))
    outcome, object_id, received, kind, reason = end.hear()
    assert (outcome, object_id, kind) == ("failed", A, "source")
    if damage == "flip":
        assert received == 0 and "checksum" in reason
    else:
        assert str(path) in reason


def test_a_copy_can_be_written_to_a_file(make: Make, tmp_path: Path) -> None:
    source, end = make("s"), make("r")
    data = os.urandom(3 * MB + 1)
    source.service.serve(1, A, source.fill(0, data))
    path = tmp_path / "made" / "x.object"
    end.fetch(source, A, len(data), place=(str(path), False))
    assert end.hear() == ("fetched", A, zlib.crc32(data)) and path.read_bytes() == data


def test_a_full_disk_is_known_before_anything_is_sent(make: Make, small_disk: str) -> None:
    source, end = make("s"), make("r")
    source.service.serve(1, A, source.fill(0, bytes(3 * MB)))
    end.fetch(source, A, 3 * MB, place=(f"{small_disk}/x", False))
    outcome, _, received, kind, reason = end.hear()
    assert (outcome, received, kind) == ("failed", 0, "disk") and "No space" in reason and small_disk in reason
    assert source.service.statistics()["transfer_sent_bytes"] == 0


def test_a_full_shared_memory_is_a_failure_and_no_crash(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    source, end = make("s"), make("r")
    source.service.serve(1, A, source.fill(0, bytes(3 * MB)))
    pwrite = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if offset >= MB:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    end.fetch(source, A, 3 * MB)
    outcome, _, received, kind, reason = end.hear()
    assert (outcome, received, kind) == ("failed", MB, "full") and "No space left" in reason


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_a_source_that_is_gone_in_the_middle_and_another_that_goes_on(make: Make, keyed: bool) -> None:
    key = ClusterKey.create("127.0.0.1:1") if keyed else None
    size = 60 * MB
    first, second, end = (make(name, size, key) for name in ("a", "b", "r"))
    data = os.urandom(MB) * 60
    for source in (first, second):
        source.service.serve(1, A, source.fill(0, data))
    end.fetch(first, A, size)
    while end.service.received_bytes < 10 * MB:
        time.sleep(0.001)
    first.close()
    outcome, _, received, kind, reason = end.hear()
    assert (outcome, kind) == ("failed", "link") and 10 * MB <= received < size and "broke" in reason
    end.fetch(second, A, size, received=received)
    assert end.hear() == ("fetched", A, 0) and end.look(0, size) == data
    assert second.service.statistics()["transfer_sent_bytes"] == size - received


def test_after_a_broken_link_the_rest_comes_from_the_same_source(make: Make, wire: Callable[..., Wire]) -> None:
    size = 20 * MB
    source, end = make("s", size), make("r", size)
    data = os.urandom(MB) * 20
    source.service.serve(1, A, source.fill(0, data))
    cable = wire(source, 7 * MB + 1234)
    end.fetch(cable.endpoint, A, size)
    outcome, _, received, kind, _ = end.hear()
    assert (outcome, kind) == ("failed", "link") and 0 < received <= 7 * MB
    cable.mend()
    end.fetch(cable.endpoint, A, size, received=received)
    assert end.hear() == ("fetched", A, 0) and end.look(0, size) == data
    assert end.service.statistics()["transfer_received_bytes"] == size, "nothing has come twice"


# -- passed on while it comes ---------------------------------------------------------------------------------------


def test_what_comes_is_passed_on_before_it_is_whole(make: Make, wire: Callable[..., Wire]) -> None:
    size = 20 * MB
    source, middle, end = make("s", size), make("m", size), make("r", size)
    data = os.urandom(MB) * 20
    source.service.serve(1, A, source.fill(0, data))
    cable = wire(source, 7 * MB + 1234)
    middle.service.serve(5, A, (0, size), whole=False)
    end.fetch(middle, A, size, 5)
    middle.fetch(cable.endpoint, A, size)
    outcome, _, received, kind, _ = middle.hear()
    assert (outcome, kind) == ("failed", "link") and received > 0
    deadline = time.monotonic() + PATIENCE_S
    while end.service.received_bytes < received and time.monotonic() < deadline:
        time.sleep(0.001)
    assert end.service.received_bytes == received and end.told.empty(), "all that is there, and no more"
    cable.mend()
    middle.fetch(cable.endpoint, A, size, received=received)
    assert middle.hear() == ("fetched", A, 0) and end.hear() == ("fetched", A, 0)
    middle.service.serve_rest(5)
    assert end.look(0, size) == data
    middle.service.unserve(5)
    assert middle.hear() == ("unserved", 5)


def test_a_ticket_for_what_has_come_meanwhile(make: Make) -> None:
    """It was made out when the object was not whole, and is heard of when it is."""
    source, end = make("s"), make("r")
    data = os.urandom(3 * MB)
    source.service.serve(1, A, source.fill(0, data), whole=False)
    end.fetch(source, A, 3 * MB)
    source.service.serve_rest(1)
    assert end.hear() == ("fetched", A, 0) and end.look(0, 3 * MB) == data
    source.service.serve_rest(2)  # one that was taken back does no harm


def test_who_waits_for_what_will_not_come_is_told(make: Make) -> None:
    source, end = make("s"), make("r")
    source.service.serve(1, A, (0, 3 * MB), whole=False)
    end.fetch(source, A, 3 * MB)
    deadline = time.monotonic() + PATIENCE_S
    while not end.service.statistics()["transfer_links"] and time.monotonic() < deadline:
        time.sleep(0.001)
    source.service.unserve(1)
    assert end.hear()[3] == "ticket" and source.hear() == ("unserved", 1)


def test_what_may_turn_out_to_be_damaged_is_not_passed_on(make: Make, tmp_path: Path) -> None:
    size = 3 * MB
    source, middle, end = make("s"), make("m"), make("r")
    path = tmp_path / "spilled"
    path.write_bytes(bytes(size))
    source.service.serve(1, A, (str(path), 0, size, 7))
    middle.service.serve(5, A, (0, size), whole=False)
    end.fetch(middle, A, size, 5)
    middle.fetch(source, A, size, checksum=7)
    assert middle.hear()[3] == "source"
    middle.service.unserve(5)
    assert middle.hear() == ("unserved", 5)
    assert end.hear()[3] == "ticket" and end.service.received_bytes == 0


# -- failures of a link, again ----------------------------------------------------------------------------------------


def test_nobody_who_listens_is_a_failure_with_the_reason(make: Make) -> None:
    end = make("r")
    with socket.create_server((HOST, 0)) as free:
        endpoint = f"tcp://{HOST}:{free.getsockname()[1]}"
    end.fetch(endpoint, A, 100)
    outcome, _, received, kind, reason = end.hear()
    assert (outcome, received, kind) == ("failed", 0, "link") and NO_ANSWER in reason and endpoint in reason


def test_a_place_that_makes_no_sense_is_a_failure(make: Make) -> None:
    end = make("r")
    for endpoint in ("", "tcp://", "nonsense", "tcp://127.0.0.1:99999"):
        end.fetch(endpoint, A, 100)
        assert end.hear()[3] == "link"
    assert end.service.statistics()["transfer_links"] == 0


def test_a_source_that_says_nothing_is_given_up(make: Make) -> None:
    end = make("r", stall_s=0.2)
    context = zmq.Context()
    silent = context.socket(zmq.ROUTER)
    port = silent.bind_to_random_port(f"tcp://{HOST}")
    end.fetch(f"tcp://{HOST}:{port}", A, 100)
    outcome, _, _, kind, reason = end.hear()
    assert (outcome, kind) == ("failed", "link") and "nothing" in reason
    context.destroy(0)


def test_answers_that_make_no_sense_break_the_link_and_nothing_else(make: Make) -> None:
    end = make("r")
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port(f"tcp://{HOST}")
    for answer in ([b"x"], [b"x" * 41, b"y", b"z"], [b""], [b"cos\nsystem\n(S'true'\ntR.", b""]):
        end.fetch(f"tcp://{HOST}:{port}", A, 100)
        router.send_multipart([router.recv_multipart()[0], *answer])
        assert end.hear()[3] == "link"
    end.fetch(f"tcp://{HOST}:{port}", A, 100)
    receiver, request = router.recv_multipart()
    router.send_multipart([receiver, request + b"\0", b"too short"])
    assert end.hear()[3:] == ("source", "it sent a chunk of a wrong size")
    context.destroy(0)


def test_a_ticket_that_is_not_valid_is_told_and_nothing_is_sent(make: Make) -> None:
    source, end = make("s"), make("r")
    source.service.serve(1, A, source.fill(0, bytes(100)))
    for object_id, ticket in ((B, 1), (A, 2), (B, 7)):
        end.fetch(source, object_id, 100, ticket)
        assert end.hear()[3] == "ticket"
    source.service.unserve(1)
    assert source.hear() == ("unserved", 1)
    end.fetch(source, A, 100, 1)
    assert end.hear()[3] == "ticket" and source.service.sent_bytes == 0


def test_garbage_is_counted_and_dropped(make: Make) -> None:
    source, end = make("s"), make("r")
    data = os.urandom(1000)
    source.service.serve(1, A, source.fill(0, data))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(source.service.endpoint)
    for garbage in (b"", b"x" * 39, b"x" * 41, b"\x80\x05cos\nsystem\n."):
        dealer.send(garbage)
    dealer.send_multipart([b"x" * 40, b"y"])
    for position, count in ((0, 1001), (1000, 1), (1 << 63, 1 << 31), (0, 5 * MB)):
        dealer.send(A + (1).to_bytes(8, "big") + position.to_bytes(8, "big") + count.to_bytes(4, "big"))
    deadline = time.monotonic() + PATIENCE_S
    while source.service.counts.get("malformed requests", 0) < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.service.counts["malformed requests"] == 9
    end.fetch(source, A, 1000)
    assert end.hear()[0] == "fetched"
    context.destroy(0)


# -- the end of things ----------------------------------------------------------------------------------------------


def test_a_cancelled_fetch_writes_no_more_and_says_how_far_it_came(make: Make) -> None:
    size = 100 * MB
    source, end = make("s", size), make("r", size)
    data = os.urandom(MB) * 100
    source.service.serve(1, A, source.fill(0, data))
    end.fetch(source, A, size)
    while end.service.received_bytes < 5 * MB:
        time.sleep(0.001)
    end.service.cancel(A)
    outcome, _, received, kind, _ = end.hear()
    if outcome == "fetched":
        pytest.skip("this machine is too fast")
    assert kind == "cancelled"
    end.fill(0, bytes(size))
    end.service.cancel(A)  # once more does no harm
    source.service.serve(2, B, (0, 100))
    end.fetch(source, B, 100, 2, place=(0, False))
    assert end.hear() == ("fetched", B, 0)
    time.sleep(0.1)
    assert end.look(MB, size - MB) == bytes(size - MB)
    end.fill(0, data[:received])
    end.fetch(source, A, size, received=received)  # and it can go on
    assert end.hear() == ("fetched", A, 0) and end.look(0, size) == data


def test_a_place_counts_as_looked_at_until_the_network_has_let_go_of_it(make: Make) -> None:
    size = 64 * MB
    source = make("s", size)
    source.service.serve(1, A, (0, size))
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.set(zmq.RCVHWM, 1)
    dealer.set(zmq.LINGER, 0)
    dealer.connect(source.service.endpoint)
    for position in range(0, size, 4 * MB):
        dealer.send(A + (1).to_bytes(8, "big") + position.to_bytes(8, "big") + (4 * MB).to_bytes(4, "big"))
    deadline = time.monotonic() + PATIENCE_S
    while source.service.sent_bytes < size and time.monotonic() < deadline:
        time.sleep(0.001)
    source.service.unserve(1)
    time.sleep(0.2)
    assert source.told.empty(), "most of it can not have left yet"
    context.destroy(0)
    assert source.hear() == ("unserved", 1)


def test_close_in_the_middle_of_everything(make: Make) -> None:
    source, end = make("s", 200 * MB), make("r", 200 * MB)
    source.service.serve(1, A, (0, 200 * MB))
    end.fetch(source, A, 200 * MB)
    while end.service.received_bytes < MB:
        time.sleep(0.001)
    end.close()
    source.close()
    assert source.told.empty(), "nobody is called after the end"


def test_threads_and_descriptors_do_not_grow_with_objects_and_go_with_the_links(make: Make) -> None:
    source, end = make("s", 8 * MB), make("r", 8 * MB, stall_s=0.2)

    def count() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    source.service.serve(0, A, source.fill(0, bytes(MB)))
    end.fetch(source, A, MB, 0)
    end.hear()
    before = count()
    for number in range(200):
        object_id = number.to_bytes(20, "big")
        source.service.serve(number + 1, object_id, (0, 1000))
        end.fetch(source, object_id, 1000, number + 1, place=(number * PAGE, False))
    assert {end.hear()[0] for _ in range(200)} == {"fetched"}
    assert count() == before
    others = [make(f"o{n}", PAGE) for n in range(4)]
    with_others = count()
    for other in others:
        other.service.serve(1, B, (0, 100))
        end.fetch(other, B, 100)
        end.hear()
    assert end.service.statistics()["transfer_links"] == 5 and count()[0] == with_others[0]
    for other in others:
        other.close()
    deadline = time.monotonic() + PATIENCE_S
    while count() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert end.service.statistics()["transfer_links"] == 1 and count() == before


def test_a_link_that_is_idle_is_closed_and_made_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zray.io.transfer._IDLE_S", 0.1)
    source, end = make("s"), make("r", stall_s=0.1)
    source.service.serve(1, A, source.fill(0, b"x" * 100))
    for _ in range(2):
        end.fetch(source, A, 100)
        assert end.hear()[0] == "fetched"
        deadline = time.monotonic() + PATIENCE_S
        while end.service.statistics()["transfer_links"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert end.service.statistics()["transfer_links"] == 0


def test_an_address_that_can_not_be_bound_leaves_nothing_behind(make: Make) -> None:
    end = make("r")
    for host in ("203.0.113.7", "no.such.host.invalid"):
        with pytest.raises(zmq.ZMQError):
            type(end.service)(end.arena, host, "", None, end.told.put, end.fetched, end.failed, end.unserved)
    with pytest.raises(ValueError, match="address"):
        type(end.service)(end.arena, "0.0.0.0", "", None, end.told.put, end.fetched, end.failed, end.unserved)


def test_others_are_told_the_address_that_they_can_reach(make: Make) -> None:
    end = make("r")
    service = type(end.service)(
        end.arena, "0.0.0.0", "127.0.0.1", None, end.told.put, end.fetched, end.failed, end.unserved
    )
    assert service.endpoint.startswith("tcp://127.0.0.1:")
    service.serve(1, A, (0, 100))
    end.fetch(service.endpoint, A, 100)
    assert end.hear()[0] == "fetched"
    service.close()


def test_a_bug_in_the_thread_reaches_the_loop(make: Make) -> None:
    end = make("r")
    end.service.unserve(99)
    function, error = end.told.get(timeout=PATIENCE_S)
    with pytest.raises(KeyError):
        function(error)


# -- keys -----------------------------------------------------------------------------------------------------------


def test_who_has_another_key_is_refused_and_gets_nothing(make: Make) -> None:
    key, other = ClusterKey.create("127.0.0.1:1"), ClusterKey.create("127.0.0.1:1")
    fields = {name: getattr(key, name) for name in key.__slots__}
    stranger = ClusterKey(**{**fields, "client_public": other.client_public, "client_secret": other.client_secret})
    source = make("s", 4 * MB, key)
    source.service.serve(1, A, source.fill(0, b"secret" * 100))
    for name, wrong in (
        ("other", other),  # believes in another cluster
        ("stranger", stranger),  # knows the cluster, but has not its key
        ("none", None),
    ):
        end = make(name, 4 * MB, wrong)
        end.fetch(source, A, 600)
        outcome, _, received, kind, text = end.hear()
        assert (outcome, received, kind) == ("failed", 0, "link") and WRONG_KEY in text, (name, text)
    assert source.service.sent_bytes == 0 and source.service.counts["failed handshakes"] >= 3
    friend = make("friend", 4 * MB, key)
    friend.fetch(source, A, 600)
    assert friend.hear()[0] == "fetched"


def test_who_has_a_key_does_not_talk_to_one_that_asks_for_none(make: Make) -> None:
    source, end = make("s"), make("r", 4 * MB, ClusterKey.create("127.0.0.1:1"))
    source.service.serve(1, A, source.fill(0, b"x" * 100))
    end.fetch(source, A, 100)
    assert WRONG_KEY in end.hear()[4]  # which of the two notices first decides what else is said


# -- speed ----------------------------------------------------------------------------------------------------------


def raw_seconds(target: Any, size: int) -> float:
    """How long one thread takes to send ``size`` bytes of memory to another through plain tcp."""
    data = memoryview(bytearray(size))
    with socket.create_server((HOST, 0)) as listener:

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        thread = threading.Thread(target=send)
        thread.start()
        with socket.create_connection(listener.getsockname()) as connection:
            started = time.perf_counter()
            count = 0
            while count < size:
                count += connection.recv_into(target[count : count + MB])
            seconds = time.perf_counter() - started
        thread.join()
    return seconds


def test_speed_beside_plain_tcp(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    size = 96 * MB
    key = ClusterKey.create("127.0.0.1:1")
    ends = {"plain": (make("s", size), make("r", size)), "curve": (make("sk", size, key), make("rk", size, key))}
    best: dict[str, float] = {}
    ticket = 0
    for _ in range(4):  # in turn, since other programs run too
        target: Any = ends["plain"][1].arena.buf
        best["tcp"] = min(best.get("tcp", 9e9), raw_seconds(target, size))
        for name, (source, end) in ends.items():
            ticket += 1
            source.service.serve(ticket, A, (0, size))
            started = time.perf_counter()
            end.fetch(source, A, size, ticket)
            assert end.hear()[0] == "fetched"
            best[name] = min(best.get(name, 9e9), time.perf_counter() - started)
            source.service.unserve(ticket)
            assert source.hear()[0] == "unserved"
        del target
    rates = {name: size / 1e6 / seconds for name, seconds in best.items()}
    with capsys.disabled():
        print("\ntransfer, MB/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()), end=" ")
    assert rates["plain"] > 0.25 * rates["tcp"], "half of plain tcp is the aim; a machine that others use too may be slower"
