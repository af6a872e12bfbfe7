"""The console commands ``zray-head`` and ``zray-node``: the head of a cluster, and the machines that join it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from zray.base.config import Config
from zray.base.resources import to_units
from zray.io.session import parent_directory
from zray.ops import daemon, network

_STORE_BYTES_MIN = 1 << 20
_EXAMPLES = {
    "zray-head": """examples:
  zray-head                                   on this machine; prints how others join
  zray-head --host 10.0.0.5 --port 6390       where the machines 10.0.0.* can reach it
  zray-head --detach                          in the background; zray-head --stop ends it
""",
    "zray-node": """examples:
  zray-node --address 10.0.0.5:6390 --key-file cluster.key
  zray-node --address 10.0.0.5:6390 --resources '{"big_disk": 1}' --labels zone=a
  zray-node --stop                            ends the node that runs on this machine
""",
}
_KEY_FILE = {
    "zray-head": "the file with the cluster's key: made if it is not there, else used again",
    "zray-node": "the file with the cluster's key, a copy of that of the head",
}


def head(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-head``; returns the exit code."""
    parser = _parser("zray-head", "Start the head of a cluster: its control, and a node on this machine.")
    parser.add_argument("--host", help="address of this machine that the others can reach; by default that of its way out")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; by default any that is free")
    parser.add_argument(
        "--insecure", action="store_true", help="no key and no encryption; listens on the loopback only unless --host is given"
    )
    return _run(parser, arguments, daemon.serve_head, _check_head)


def node(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``zray-node``; returns the exit code."""
    parser = _parser("zray-node", "Join this machine to a cluster.")
    parser.add_argument("--address", metavar="HOST:PORT", help="where the head of the cluster listens")
    parser.add_argument("--host", help="address of this machine that the others can reach; by default that towards the head")
    parser.add_argument("--insecure", action="store_true", help="the cluster has no key")
    return _run(parser, arguments, daemon.serve_node, _check_node)


def _parser(name: str, text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        name,
        description=text,
        epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    offers = parser.add_argument_group("what the machine offers")
    offers.add_argument("--num-cpus", type=float, metavar="N", help="CPUs; by default those this process may use")
    offers.add_argument("--num-gpus", type=float, default=0.0, metavar="N", help="GPUs; by default none")
    offers.add_argument("--resources", default="{}", metavar="JSON", help="further resources by name: '{\"big_disk\": 1}'")
    offers.add_argument("--labels", default="", metavar="K=V,...", help="labels that strategies can ask for")
    offers.add_argument(
        "--object-store-memory",
        type=int,
        default=0,
        metavar="BYTES",
        help="shared memory for objects; by default a share of what the machine has",
    )
    runs = parser.add_argument_group("how it runs")
    runs.add_argument("--key-file", default="", metavar="FILE", help=_KEY_FILE[name] + " (also ZRAY_KEY_FILE)")
    runs.add_argument("--session-dir", default="", metavar="DIR", help="where its directory is made (also ZRAY_TMPDIR)")
    runs.add_argument("--log-level", default="INFO", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR")
    runs.add_argument("--detach", action="store_true", help="run in the background, and return when it is up")
    runs.add_argument("--stop", action="store_true", help="end the instance that runs here, that of --session-dir if given")
    runs.add_argument("--ends-with", type=int, default=0, metavar="PID", help=argparse.SUPPRESS)  # of zray.cluster_utils
    return parser


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, serve: Any, check: Any) -> int:
    chosen = parser.parse_args(arguments)
    role = parser.prog
    try:
        if chosen.stop:
            return daemon.stop(role, chosen.session_dir)
        settings = {**_settings(chosen), **check(chosen)}
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        print(f"{role}: {error.strerror or error}", file=sys.stderr)
        return 1
    try:
        if chosen.detach:
            return daemon.detach(role, serve, settings)
        return int(serve(settings, sys.stderr))
    except (OSError, ConnectionError) as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 1
    finally:
        daemon.clear_after(chosen.ends_with, chosen.session_dir)


def _settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """What both commands have in common, checked.

    Raises:
        ValueError: an option has a bad value.
    """
    level = logging.getLevelName(chosen.log_level.upper())
    if not isinstance(level, int):
        raise ValueError(f"--log-level must be DEBUG, INFO, WARNING or ERROR, not {chosen.log_level!r}")
    try:
        named = json.loads(chosen.resources)
    except ValueError:
        named = None
    if not isinstance(named, dict) or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 for value in named.values()
    ):
        raise ValueError(f"--resources must be a JSON object of amounts, as '{{\"disk\": 2}}', not {chosen.resources!r}")
    if "" in named:
        raise ValueError("--resources must have a name for each amount")
    if {"CPU", "GPU", "memory"} & set(named):
        raise ValueError("--resources must not name CPU, GPU or memory: these have options of their own")
    labels = {}
    for part in filter(None, chosen.labels.split(",")):
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise ValueError(f"--labels must be NAME=VALUE pairs with commas between them, not {chosen.labels!r}")
        if name in labels:
            raise ValueError(f"--labels says twice what {name} is: {chosen.labels!r}")
        labels[name] = value
    cpus = float(len(os.sched_getaffinity(0))) if chosen.num_cpus is None else chosen.num_cpus
    amounts = [("--num-cpus", cpus), ("--num-gpus", chosen.num_gpus), *(("--resources", value) for value in named.values())]
    for option, amount in amounts:
        try:
            to_units(amount)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
    if chosen.num_gpus % 1:
        raise ValueError(f"--num-gpus must be a whole number, not {chosen.num_gpus:g}: tasks may ask for a part of one")
    if chosen.object_store_memory and chosen.object_store_memory < _STORE_BYTES_MIN:
        raise ValueError(f"--object-store-memory must be {_STORE_BYTES_MIN} bytes at least, not {chosen.object_store_memory}")
    return {
        "resources": {"CPU": cpus, "GPU": chosen.num_gpus, **named},
        "labels": labels,
        "store_bytes": chosen.object_store_memory,
        "key_file": chosen.key_file or os.environ.get("ZRAY_KEY_FILE", ""),
        "temp_dir": parent_directory(chosen.session_dir),
        "ends_with": chosen.ends_with,
        "logging_level": level,
        "insecure": chosen.insecure,
    }


def _check_host(host: str | None) -> None:
    if host in ("0.0.0.0", "::", "*"):
        raise ValueError(f"--host must be the one address of this machine by which the others reach it, not {host!r}")
    if host:
        network.check_own(host)


def _check_head(chosen: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= chosen.port < 1 << 16:
        raise ValueError(f"--port must be between 0 and 65535, not {chosen.port}")
    _check_host(chosen.host)
    host = chosen.host or ("127.0.0.1" if chosen.insecure else network.own_address())
    return {"tcp": [host, chosen.port, host], "config": Config.from_environment().as_dict()}


def _check_node(chosen: argparse.Namespace) -> dict[str, Any]:
    if not chosen.address:
        raise ValueError("--address HOST:PORT is needed: zray-head prints it when it starts")
    host, port = network.split(chosen.address)
    _check_host(chosen.host)
    own = chosen.host or network.address_towards(host, port)
    return {"tcp": [own, 0, own], "address": network.joined(host, port)}
