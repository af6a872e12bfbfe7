"""Conversation: what two processes say to each other over tcp, across the connections that carry it.

A tcp connection can break while both ends live, and what was under way in it is gone without a word. So each frame of a link
over tcp has a number, and is kept until the other side has said that it heard it. Who dials makes the connection anew and says
up to where it heard; then both say again what the other side has not heard. A frame that was heard already, or that comes
before one that is missing, is dropped: each is delivered once, in order.

Every frame begins with its number and the number of the last one heard from the other side. Who hears much and says little says
so in a *word*, a frame with no content whose number is 0. Nothing here has to do with time: what was said waits, however long the
other side is away, until somebody hangs up.

An end that was started anew knows nothing of the conversation, and neither does one that has hung up. It is *begun anew* then,
with what was not heard: the other side may hear some of it for the second time, but in another life.
"""

from __future__ import annotations

import struct
from collections import deque

_HEADER = struct.Struct(">QQ")
HEADER_BYTES = _HEADER.size
NEVER = -1  # nothing was heard in this conversation, not even a word
_OWED_MAX = 32  # frames that were heard and not confirmed yet
_OWED_BYTES_MAX = 1 << 20


class Conversation:
    """One side of a conversation.

    Args:
        number: which of those that the dialling process began this is.
    """

    __slots__ = ("_kept", "_owed", "_owed_bytes", "_said", "heard", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.heard = NEVER  # number of the last frame
        self._said = 0
        self._kept: deque[bytes] = deque()  # what was said last, and perhaps not heard
        self._owed = 0
        self._owed_bytes = 0

    def say(self, content: bytes) -> bytes:
        """The frame for something to say. It is kept."""
        number = self._said = self._said + 1
        frame = self._header(number) + content
        self._kept.append(frame)
        return frame

    def word(self) -> bytes:
        """A frame that only says how much was heard."""
        return self._header(0)

    def hear(self, frame: bytes) -> bytes | None:
        """The content of a frame, or None if there is none, or none that is due."""
        if len(frame) < HEADER_BYTES:
            return None
        number, confirmed = _HEADER.unpack_from(frame)
        if self._kept:
            self.confirm(confirmed)
        self.heard = max(self.heard, 0)
        if number != self.heard + 1:
            return None
        self.heard = number
        self._owed += 1
        self._owed_bytes += len(frame)
        return frame[HEADER_BYTES:]

    def owes(self) -> bool:
        """Whether it is time for a word."""
        return self._owed >= _OWED_MAX or self._owed_bytes >= _OWED_BYTES_MAX

    def confirm(self, heard: int) -> None:
        """The other side has heard all up to this number."""
        kept = self._kept
        for _ in range(min(heard, self._said) - (self._said - len(kept))):
            kept.popleft()

    def unheard(self) -> list[bytes]:
        """The frames to say again on a new connection."""
        return list(self._kept)

    def begin_anew(self, number: int) -> list[bytes]:
        """The other side knows nothing of this conversation. Returns what it may not have heard, to be said in the next one."""
        contents = [frame[HEADER_BYTES:] for frame in self._kept]
        self.__init__(number)  # type: ignore[misc]
        return contents

    def _header(self, number: int) -> bytes:
        self._owed = self._owed_bytes = 0
        return _HEADER.pack(number, max(0, self.heard))

    def __len__(self) -> int:
        """How many frames are kept."""
        return len(self._kept)
