"""The judge of refusals: it must see when a store was wrong, and not only when it was right."""

from __future__ import annotations

from zray.base.config import Config
from zray.core.arena import PAGE
from zray.core.store import ObjectStore

from .room import wrongly_refused

CLIENT, OWNER = b"client----------", b"owner-----------"


def store(directories: list[str], *objects: tuple[bytes, int]) -> ObjectStore:
    """A store of four pages with objects in it."""
    made = ObjectStore(4 * PAGE, Config(spill_threshold=1.0), [], {}.__contains__, directories)
    for number, (object_id, pages) in enumerate(objects):
        made.create(0.0, CLIENT, number, object_id, pages * PAGE)
        made.seal(object_id, OWNER)
    return made


def refused(pages: int) -> str:
    return f"an object of {pages * PAGE} bytes does not fit into the object store"


def test_who_finds_no_room_that_could_be_made_is_rightly_refused() -> None:
    full = store([], (b"a", 3))
    assert wrongly_refused(full, refused(2)) == "" and "1 pages" in wrongly_refused(full, refused(1))
    assert wrongly_refused(full, refused(5)) == ""


def test_what_can_be_moved_to_a_storage_is_no_reason_to_refuse_and_what_is_read_is() -> None:
    movable = store(["s3://bucket"], (b"a", 1), (b"b", 1))
    assert "4 pages" in wrongly_refused(movable, refused(4))
    movable.pin(CLIENT, 9, b"b")
    assert wrongly_refused(movable, refused(3)) == "" and "2 pages" in wrongly_refused(movable, refused(2))
    movable.files.on_failed(0.0, 0, "no space")
    assert wrongly_refused(movable, refused(3)) == ""


def test_a_disk_of_this_machine_takes_everything_unless_it_fails() -> None:
    beside = store(["/d0"], (b"a", 4))
    assert "/d0" in wrongly_refused(beside, refused(50))
    beside.files.on_failed(0.0, 0, "no space")
    assert wrongly_refused(beside, refused(1)) == ""


def test_a_refusal_that_says_nothing_is_wrong() -> None:
    assert "does not say" in wrongly_refused(store([]), "no")
