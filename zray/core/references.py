"""ReferenceCounter: who still needs an object.

Theory of operation
-------------------
The process that made an object *owns* it (the ownership protocol of NSDI'21, "Ownership: a distributed futures system for
fine-grained tasks") and frees it when nobody needs it any more. Three things keep an object:

- ``counts``: needs inside this process, owned or not. Each live ``ObjectRef``, each task that takes the object as an
  argument, and each other object whose value contains the reference counts one.
- ``borrowers`` (at the owner): other processes that hold references, with a count each.
- containment: a value that contains references holds them for as long as the value itself is kept.

The rule that closes every race is *the giver registers the receiver*. A process that hands a reference on, in a result
or in the value of an object, tells the owner "+1 for the receiver" on its own link before it gives up its own count,
and links keep order: the owner can never see the giver gone before it knows of the receiver. The receiver remembers how
often it was registered (``handed``) and gives back exactly that many when its own count reaches zero. Arguments are
cheaper: the submitter keeps them until the task is done, and the worker says in its DONE which of them it kept; the
submitter then registers the worker and only then lets go. The worker also names those it does not hold any more but has
passed on meanwhile: the word about the next borrower goes by the worker's own link, and the submitter's release must
not overtake it unprotected. A count at the owner may thus pass below zero for a moment, when the receiver's release
overtakes the giver's registration on another link; some other count is above zero meanwhile. Where none is, the
registration died with its giver.

A borrower that ends gives nothing back, so somebody must tell of its end: ``met`` collects the processes to be watched.
``freed`` collects owned objects that nobody needs; ``dropped`` the borrowed ones this process is done with.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from zray.base.wire import Address, Contained
from zray.exceptions import InvariantError


class ReferenceCounter:
    """The counts of one process.

    Args:
        me: address of this process.
    """

    __slots__ = (
        "_bare",
        "_borrowing",
        "_me",
        "borrowers",
        "contained",
        "counts",
        "deltas",
        "dropped",
        "freed",
        "handed",
        "me",
        "met",
        "owners",
        "passed",
    )

    def __init__(self, me: Address) -> None:
        self.me = me
        self._me = me[0]
        self.counts: dict[bytes, int] = {}
        self.owners: dict[bytes, Address] = {}  # of the borrowed ones
        self.handed: dict[bytes, int] = {}  # how often I am registered at the owner of a borrowed one
        self.passed: dict[bytes, None] = {}  # arguments given to others while only a submitter protected them
        self.borrowers: dict[bytes, dict[bytes, int]] = {}  # of the owned ones
        self.contained: dict[bytes, tuple[bytes, ...]] = {}  # references inside values kept here
        self.deltas: dict[Address, list[tuple[bytes, bytes, int]]] = {}  # to be sent to owners
        self.freed: list[bytes] = []
        self.dropped: list[bytes] = []
        self._bare: dict[bytes, None] = {}  # borrowed ones that came as arguments, without a registration
        self._borrowing: dict[bytes, None] = {}  # processes that are or were borrowers
        self.met: list[bytes] = []  # those that came new: somebody must tell when they end

    # -- counts ---------------------------------------------------------------------------------------------------

    def own(self, object_id: bytes) -> None:
        """A new object of this process, with one local reference."""
        self.counts[object_id] = 1

    def hold(self, object_id: bytes, owner: Address) -> None:
        """One more need inside this process."""
        count = self.counts.get(object_id, 0)
        self.counts[object_id] = count + 1
        if count == 0 and owner[0] != self._me:
            self.owners[object_id] = owner
            self._bare[object_id] = None

    def borrow(self, object_id: bytes, owner: Address) -> None:
        """One more need, of an object that nobody handed on: this process registers itself."""
        self.hold(object_id, owner)
        if owner[0] != self._me:
            self.received(object_id)
            self._bare.pop(object_id, None)
            self.deltas.setdefault(owner, []).append((object_id, self._me, 1))

    def release(self, object_id: bytes) -> None:
        """One need less; at zero the object is freed, or its owner told."""
        count = self.counts.get(object_id)
        if count is None:
            return  # the object was lost with its owner, or never became known here
        if count > 1:
            self.counts[object_id] = count - 1
        else:
            self._reach_zero(object_id)

    def received(self, object_id: bytes) -> None:
        """Somebody registered this process as a borrower of ``object_id``."""
        if object_id in self.owners:
            self.handed[object_id] = self.handed.get(object_id, 0) + 1

    def contain(self, outer: bytes, inner: Contained, *, received: bool) -> None:
        """The value of ``outer``, kept here, has references inside; ``received``: its giver registered us for each."""
        for object_id, owner in inner:
            first = object_id not in self.counts
            self.hold(object_id, owner)
            if received:
                self.received(object_id)
                if first:
                    self._bare.pop(object_id, None)
        self.contained[outer] = tuple(object_id for object_id, _ in inner)

    def uncontain(self, outer: bytes) -> None:
        """The value of ``outer`` is not what it was: what it contained is not held for it any more."""
        for object_id in self.contained.pop(outer, ()):
            self.release(object_id)

    def decline(self, inner: Contained) -> None:
        """A value with references inside arrived for nobody: give the registrations back."""
        for object_id, owner in inner:
            self.hold(object_id, owner)
            self.received(object_id)
            self.release(object_id)

    def kept(self, borrowed: dict[bytes, Address]) -> list[tuple[bytes, Address]]:
        """A task is over: of the references that came with its arguments, those for which its submitter must register us.

        To be asked after the references in the task's results were given to the submitter.
        """
        named = []
        for object_id, owner in borrowed.items():
            passed = self.passed.pop(object_id, self) is None
            if object_id in self.owners:
                self.received(object_id)
                self._bare.pop(object_id, None)
                named.append((object_id, owner))
            elif passed:
                self.deltas.setdefault(owner, []).append((object_id, self._me, -1))
                named.append((object_id, owner))
        return named

    # -- other processes ------------------------------------------------------------------------------------------

    def give(self, object_id: bytes, owner: Address, receiver: bytes) -> None:
        """Register ``receiver`` as a borrower, here or at the owner."""
        if owner[0] == receiver:  # an owner needs no registration for what is its own
            if receiver == self._me:
                self.hold(object_id, owner)  # ... but what it sends to itself is kept by nobody else on the way
            return
        if owner[0] == self._me:
            self._adjust(object_id, receiver, 1)
        else:
            self.deltas.setdefault(owner, []).append((object_id, receiver, 1))
            if object_id in self._bare:
                self.passed[object_id] = None

    def come_home(self, inner: Contained) -> None:
        """A value arrived that this process had sent to itself: what it held on the way is held no more."""
        for object_id, owner in inner:
            if owner[0] == self._me:
                self.release(object_id)

    def on_refs(self, deltas: list[Any]) -> None:
        """Other processes changed their counts of objects owned here."""
        for object_id, borrower, delta in deltas:
            self._adjust(object_id, borrower, delta)

    def on_process_died(self, process: bytes) -> list[bytes]:
        """A process is gone: its borrowings end. Returns the borrowed objects that it owned.

        It may have been the submitter that protected an argument which is held here: an actor outlives its callers. So this
        process registers itself for all that only submitters protect.
        """
        bare, self._bare = self._bare, {}
        for object_id in bare:
            owner = self.owners[object_id]
            if owner[0] != process:
                self.received(object_id)
                self.deltas.setdefault(owner, []).append((object_id, self._me, 1))
        lent = self.borrowers if self._borrowing.pop(process, self) is None else {}
        for object_id in [o for o, by in lent.items() if process in by]:
            by = lent[object_id]
            del by[process]
            self._end_if_unneeded(object_id, by)
        return [o for o, owner in self.owners.items() if owner[0] == process]

    def needed(self, object_id: bytes) -> bool:
        return object_id in self.counts or object_id in self.borrowers

    def lent_beyond(self, processes: Container[bytes]) -> bool:
        """Whether others than these processes hold references to what this one owns."""
        return any(process not in processes for by in self.borrowers.values() for process in by)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _adjust(self, object_id: bytes, borrower: bytes, delta: int) -> None:
        by = self.borrowers.get(object_id)
        if by is None:
            if object_id not in self.counts:
                return  # freed already; only a stale or repeated message can say this
            by = self.borrowers[object_id] = {}
        if borrower not in self._borrowing:
            self._borrowing[borrower] = None
            self.met.append(borrower)
        count = by.get(borrower, 0) + delta
        if count:
            by[borrower] = count
        else:
            by.pop(borrower, None)
        if count <= 0:
            self._end_if_unneeded(object_id, by)

    def _end_if_unneeded(self, object_id: bytes, by: dict[bytes, int]) -> None:
        """A borrower count went down: free the object if nothing above zero is left."""
        if not by:
            del self.borrowers[object_id]
        if object_id not in self.counts and not any(count > 0 for count in by.values()):
            self.borrowers.pop(object_id, None)
            self._end(object_id, self.freed)

    def _reach_zero(self, object_id: bytes) -> None:
        del self.counts[object_id]
        owner = self.owners.pop(object_id, None)
        if owner is not None:
            self._bare.pop(object_id, None)
            registered = self.handed.pop(object_id, 0)
            if registered:
                self.deltas.setdefault(owner, []).append((object_id, self._me, -registered))
            self._end(object_id, self.dropped)
        elif object_id not in self.borrowers:
            self._end(object_id, self.freed)
        else:
            self._end_if_unneeded(object_id, self.borrowers[object_id])

    def _end(self, object_id: bytes, into: list[bytes]) -> None:
        into.append(object_id)
        stack = list(self.contained.pop(object_id, ()))
        while stack:  # a list of lists of lists must not recurse
            inner = stack.pop()
            count = self.counts.get(inner, 0)
            if count > 1:
                self.counts[inner] = count - 1
            elif count == 1:
                nested = self.contained.pop(inner, ()) if inner not in self.borrowers else ()
                self._reach_zero(inner)
                stack.extend(nested)

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        for object_id, count in self.counts.items():
            if count <= 0:
                raise InvariantError(f"count of {object_id.hex()} is {count}")
        for name, table in (("owner", self.owners), ("handed", self.handed)):
            for object_id in table:
                if object_id not in self.counts:
                    raise InvariantError(f"{name} of {object_id.hex()} is kept without a count")
        for object_id, by in self.borrowers.items():
            if not by or 0 in by.values():
                raise InvariantError(f"empty borrower entry of {object_id.hex()}")
        for outer, inner in self.contained.items():
            if not self.needed(outer):
                raise InvariantError(f"{outer.hex()} contains references but nobody needs it")
            for object_id in inner:
                if object_id not in self.counts:
                    raise InvariantError(f"{object_id.hex()} inside {outer.hex()} is not held")

    def statistics(self) -> dict[str, int]:
        return {
            "counted": len(self.counts),
            "borrowed": len(self.owners),
            "lent": len(self.borrowers),
            "containers": len(self.contained),
        }
