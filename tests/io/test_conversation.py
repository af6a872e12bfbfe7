"""Conversation: each frame is delivered once and in order, whatever becomes of the connections."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zray.io.conversation import HEADER_BYTES, NEVER, Conversation


def test_what_is_said_is_heard_and_confirmed_by_the_answer() -> None:
    a, b = Conversation(1), Conversation(1)
    assert (a.heard, b.heard) == (NEVER, NEVER)
    assert [b.hear(a.say(content)) for content in (b"one", b"two")] == [b"one", b"two"]
    assert (len(a), b.heard) == (2, 2)
    assert a.hear(b.say(b"three")) == b"three"
    assert (len(a), len(b)) == (0, 1)
    assert b.hear(a.word()) is None and len(b) == 0


def test_a_word_says_that_the_other_side_is_there() -> None:
    a, b = Conversation(1), Conversation(1)
    assert a.hear(b.word()) is None and a.heard == 0


def test_what_was_heard_already_and_what_comes_too_early_is_dropped() -> None:
    a, b = Conversation(1), Conversation(1)
    one, two, three = (a.say(content) for content in (b"1", b"2", b"3"))
    assert [b.hear(frame) for frame in (one, three, one, two, two, three)] == [b"1", None, None, b"2", None, b"3"]


def test_a_word_is_due_after_many_frames_or_many_bytes() -> None:
    a, b = Conversation(1), Conversation(1)
    for _ in range(31):
        b.hear(a.say(b"x"))
    assert not b.owes()
    b.hear(a.say(b"x"))
    assert b.owes()
    a.hear(b.word())
    assert not b.owes() and len(a) == 0
    b.hear(a.say(bytes(1 << 20)))
    assert b.owes()


def test_what_was_not_heard_is_said_again_in_a_new_conversation() -> None:
    a, b, c = Conversation(1), Conversation(1), Conversation(2)
    b.hear(a.say(b"one"))
    a.hear(b.say(b"answer"))
    a.say(b"two")
    contents = a.begin_anew(2)
    assert (contents, a.number, a.heard, len(a)) == ([b"two"], 2, NEVER, 0)
    assert c.hear(a.say(contents[0])) == b"two"


def test_nonsense_changes_nothing() -> None:
    a = Conversation(1)
    a.say(b"one")
    for frame in (b"", b"\0", bytes(HEADER_BYTES - 1), b"\0" * 7 + b"\5" + bytes(8)):
        assert a.hear(frame) is None
    assert len(a) == 1
    a.hear(bytes(8) + b"\xff" * 8)  # it has heard more than was said
    assert len(a) == 0 and a.say(b"two")[7] == 2


_STEPS = st.lists(st.sampled_from(["a says", "b says", "a hears", "b hears", "lost", "both lost"]), max_size=200)


@given(_STEPS)
def test_connections_break_at_any_moment(steps: list[str]) -> None:
    """Frames are under way in two queues; a break loses what is in them, and then both say again what was not heard."""
    ends = {"a": Conversation(1), "b": Conversation(1)}
    way: dict[str, list[bytes]] = {"a": [], "b": []}  # to whom
    said: dict[str, list[bytes]] = {"a": [], "b": []}
    heard: dict[str, list[Any]] = {"a": [], "b": []}
    other = {"a": "b", "b": "a"}

    def hear(who: str) -> None:
        if way[who]:
            content = ends[who].hear(way[who].pop(0))
            if content is not None:
                heard[who].append(content)
            if ends[who].owes():
                way[other[who]].append(ends[who].word())

    def connect() -> None:
        for who in "ab":
            way[who].clear()
        for who in "ab":
            ends[who].confirm(max(0, ends[other[who]].heard))
            way[other[who]] += ends[who].unheard()

    for number, step in enumerate(steps):
        who = step[0]
        if step.endswith("says"):
            content = b"%d" % number
            said[who].append(content)
            way[other[who]].append(ends[who].say(content))
        elif step.endswith("hears"):
            hear(who)
        else:
            if step == "lost":
                way["a"].clear()  # one way was lost earlier
            connect()
    connect()
    while way["a"] or way["b"]:
        hear("a")
        hear("b")
    assert heard == {"a": said["b"], "b": said["a"]}
