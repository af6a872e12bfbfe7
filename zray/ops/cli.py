"""The console commands ``zray-head`` and ``zray-node``.

Both are promises for now: a cluster of several machines is not built yet, and the commands say so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_NOT_YET = (
    "joining machines is not available in this version of zray; call zray.init() in a Python program, which starts a "
    "cluster of one machine by itself"
)


def head(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-head``.

    Returns:
        The exit code: 2, since there is nothing to start yet.
    """
    parser = argparse.ArgumentParser(
        "zray-head", description=f"Will start the head of a cluster of several machines. At present {_NOT_YET}."
    )
    return _refuse(parser, arguments)


def node(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-node``.

    Returns:
        The exit code: 2, since there is nothing to join yet.
    """
    parser = argparse.ArgumentParser(
        "zray-node", description=f"Will join this machine to a cluster. At present {_NOT_YET}."
    )
    parser.add_argument("--address", metavar="HOST:PORT", help="where the head of the cluster can be reached")
    return _refuse(parser, arguments)


def _refuse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    parser.parse_args(arguments)
    print(f"{parser.prog}: {_NOT_YET}.", file=sys.stderr)
    return 2
