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
from zray.base.ids import NodeID
from zray.ops import daemon, network

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
    offers.add_argument("--num-cpus", type=float, help="CPUs; by default those this process may use")
    offers.add_argument("--num-gpus", type=float, default=0.0, help="GPUs")
    offers.add_argument("--resources", default="{}", metavar="JSON", help="further resources by name")
    offers.add_argument("--labels", default="", metavar="K=V,...", help="labels that strategies can ask for")
    offers.add_argument("--object-store-memory", type=int, default=0, metavar="BYTES", help="shared memory for objects")
    runs = parser.add_argument_group("how it runs")
    runs.add_argument("--key-file", default="", help="the file with the cluster's key (also ZRAY_KEY_FILE)")
    runs.add_argument("--session-dir", default="", metavar="DIR", help="where its directory is made (also ZRAY_TMPDIR)")
    runs.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR")
    runs.add_argument("--detach", action="store_true", help="run in the background, and return when it is up")
    runs.add_argument("--stop", action="store_true", help="end the instance that runs here, that of --session-dir if given")
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
    try:
        if chosen.detach:
            return daemon.detach(role, serve, settings)
        return int(serve(settings, sys.stderr))
    except (OSError, ConnectionError) as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 1


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
    if {"CPU", "GPU", "memory"} & set(named):
        raise ValueError("--resources must not name CPU, GPU or memory: these have options of their own")
    labels = {}
    for part in filter(None, chosen.labels.split(",")):
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise ValueError(f"--labels must be NAME=VALUE pairs with commas between them, not {chosen.labels!r}")
        labels[name] = value
    for name in ("num_cpus", "num_gpus", "object_store_memory"):
        if (getattr(chosen, name) or 0) < 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative")
    cpus = float(len(os.sched_getaffinity(0))) if chosen.num_cpus is None else chosen.num_cpus
    return {
        "resources": {"CPU": cpus, "GPU": chosen.num_gpus, **named},
        "labels": labels,
        "store_bytes": chosen.object_store_memory,
        "key_file": chosen.key_file or os.environ.get("ZRAY_KEY_FILE", ""),
        "temp_dir": chosen.session_dir,
        "logging_level": level,
        "insecure": chosen.insecure,
        "log_to_driver": False,
        "log": False,
        "node_id": bytes(NodeID.from_random()).hex(),
    }


def _check_head(chosen: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= chosen.port < 1 << 16:
        raise ValueError(f"--port must be between 0 and 65535, not {chosen.port}")
    host = chosen.host or ("127.0.0.1" if chosen.insecure else network.own_address())
    return {"tcp": [host, chosen.port, host], "config": Config.from_environment().as_dict()}


def _check_node(chosen: argparse.Namespace) -> dict[str, Any]:
    if not chosen.address:
        raise ValueError("--address HOST:PORT is needed: zray-head prints it when it starts")
    host, port = network.split(chosen.address)
    own = chosen.host or network.address_towards(host, port)
    return {"tcp": [own, 0, own], "address": network.joined(host, port)}
