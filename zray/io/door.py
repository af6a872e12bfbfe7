"""Door: the listening socket of a process, which can be shut for a moment.

libzmq takes whatever connects, and gives it some seconds to prove itself. The descriptors, memory and time that strangers
cost are bounded by letting nobody knock for a while: the kernel drops what arrives at the listening socket, by a filter that
anybody may attach to a socket of his own. Who came at the wrong moment is not refused: its system knocks again by itself a
second later. Connections that were made before notice nothing.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

# What Python does not name; of Linux, for all processors.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_RETURN = 0x06  # the one instruction of the filter: let so many bytes of the packet pass


class Door:
    """The listening socket behind a descriptor.

    Args:
        descriptor: of a listening socket that somebody else owns.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self.is_shut = False

    def shut(self) -> bool:
        """Let nobody knock; False: this system can not do that."""
        instruction = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, 0))
        program = struct.pack("@HP", 1, ctypes.addressof(instruction))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError:  # not Linux, or somebody has forbidden it: there strangers are bounded by the number of descriptors alone
            return False
        self.is_shut = True
        return True

    def open(self) -> None:
        """Let everybody knock again."""
        if self.is_shut:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
            self.is_shut = False

    def close(self) -> None:
        """Forget the socket; whose it is closes it."""
        self._socket.close()
