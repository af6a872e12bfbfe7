"""ObjectRef: a promise of a value that lives somewhere in the cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from zray.base import serialization
from zray.base.ids import ObjectID, TaskID

if TYPE_CHECKING:
    from zray.base.wire import Address

T = TypeVar("T")


class Runtime(Protocol):
    """What a reference needs of the process it lives in."""

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        """A reference that arrived inside a value becomes one of this process."""

    def keep_for_ever(self, ref: ObjectRef[Any]) -> None:
        """The reference was pickled by somebody else: nobody can tell when the copy is gone."""

    def future(self, ref: ObjectRef[T]) -> Future[T]:
        """A future of the value."""

    def awaited(self, ref: ObjectRef[T]) -> Generator[Any, None, T]:
        """In an event loop: wait for the value."""


connected: Runtime | None = None  # the one connected runtime of this process; zray.init and shutdown set it


class ObjectRef(Generic[T]):
    """A reference to an object: the result of a task, or of ``put``.

    References are made by zray, not by hand. They can be compared, hashed, put into containers and passed to tasks; while
    one exists anywhere the object is kept. ``await ref`` gives the value in asyncio code.

    Example:
        >>> import zray as ray
        >>> ref = ray.put([1, 2])          # doctest: +SKIP
        >>> ray.get(ref)                   # doctest: +SKIP
        [1, 2]
    """

    __slots__ = ("__weakref__", "_id", "_release", "owner")

    def __init__(self, object_id: bytes, owner: Address, release: Callable[[bytes], None]) -> None:
        self._id = object_id
        self.owner = owner
        self._release = release

    def __del__(self) -> None:
        # Runs at any moment, in any thread, even inside the loop: it may do nothing but append to the inbox.
        self._release(self._id)

    def binary(self) -> bytes:
        """The id as 20 bytes."""
        return self._id

    def hex(self) -> str:
        """The id as hexadecimal text."""
        return self._id.hex()

    def object_id(self) -> ObjectID:
        """The id as an ObjectID."""
        return ObjectID(self._id)

    def task_id(self) -> TaskID:
        """The id of the task that makes the object."""
        return TaskID(self._id[:16])

    def future(self) -> Future[T]:
        """A ``concurrent.futures.Future`` of the value.

        Raises:
            RuntimeError: zray is not initialized.
        """
        if connected is None:
            raise RuntimeError("zray is not initialized in this process: call zray.init() first")
        return connected.future(self)

    def __await__(self) -> Generator[Any, None, T]:
        if connected is None:
            raise RuntimeError("zray is not initialized in this process: call zray.init() first")
        return connected.awaited(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        if not serialization.capture(self) and connected is not None:
            connected.keep_for_ever(self)
        return _adopt, (self._id, self.owner)

    def __copy__(self) -> ObjectRef[T]:
        return self

    def __deepcopy__(self, memo: Any) -> ObjectRef[T]:
        return self


class DynamicObjectRefGenerator(Generic[T]):
    """The value of a call with ``num_returns="dynamic"``: the references to all items of a generator.

    Args:
        refs: the references.
    """

    def __init__(self, refs: Iterable[ObjectRef[T]]) -> None:
        self._refs = deque(refs)

    def __iter__(self) -> Iterator[ObjectRef[T]]:
        """The references; each is forgotten when it was taken."""
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        return len(self._refs)


def _adopt(object_id: bytes, owner: Address) -> ObjectRef[Any]:
    if connected is None:
        raise RuntimeError(
            f"ObjectRef({object_id.hex()}) can only be read where zray is initialized: call zray.init() first"
        )
    return connected.adopt(object_id, owner)
