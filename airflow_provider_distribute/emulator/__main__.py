# SPDX-License-Identifier: Apache-2.0

"""The command line: ``python -m airflow_provider_distribute.emulator --help``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
import sys
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.server import Server
from airflow_provider_distribute.emulator.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

PER_SERVICE = ("latency", "rate_limit", "not_found")

EPILOG = """\
Options marked * may be given once for both services, or as SERVICE/VALUE for one, for instance
--latency distribute/fifo:rate=10 --latency inference_net/lognormal:median=30,sigma=1

latencies    constant:seconds=2 | 2 | uniform:low=2,high=10 | exponential:mean=30 |
             lognormal:median=30,sigma=1 | fifo:rate=10,noise=0 | wave:after=60
faults       KIND:key=value,... for instance 429:operation=submit,rate=0.1,retry_after=2
             reset:accepted=true,count=1   unknown_status:service=distribute   error:rate=0.02
             (all kinds: python -m pydoc airflow_provider_distribute.emulator.faults)
control      /_emulator/stats, /ledger, /jobs, /faults, /outage, /reset
"""


def parser() -> argparse.ArgumentParser:
    """Describe the command line. Options left out are not in the namespace: the settings have defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_distribute.emulator",
        description="A stand-in for both services, on loopback.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="default 127.0.0.1: reachable from this machine only")
    add("--port", type=int, default=8000, help="default 8000; 0 for a free one, which the first line tells")
    add("--tls-cert", default=None, metavar="FILE", help="serve https with this certificate chain (PEM)")
    add("--tls-key", default=None, metavar="FILE", help="its private key (PEM)")
    add("--key", help="API key both services accept; without it any key will do")
    add("--seed", type=int, help="repeats ids, texts, latencies and faults (default 0)")
    add(
        "--latency",
        action="append",
        default=[],
        metavar="SPEC",
        help="* how long jobs take (default uniform:low=2,high=10)",
    )
    add("--faults", action="append", metavar="RULE", help="what goes wrong; repeatable")
    add(
        "--rate-limit",
        action="append",
        default=[],
        metavar="SPEC",
        help="* for instance 100/s, or 250/min:http_date=true",
    )
    add(
        "--not-found",
        action="append",
        default=[],
        metavar="SPEC",
        help="* 404 for new jobs: seconds=2, looks=3, until=done",
    )
    add("--balance", type=float, metavar="USD", help="what each service may spend before it answers 402")
    add(
        "--time-scale",
        type=float,
        metavar="X",
        help="latency seconds that pass in one real second (default 1)",
    )
    add("--timestamps", choices=("ms", "s", "iso"), help="how distribute writes times (default ms)")
    add("--auth-prefix", metavar="TEXT", help="what distribute expects before the key (default nothing)")
    add(
        "--errors",
        choices=("object", "string", "message", "detail"),
        help="form of inference_net's error bodies",
    )
    add("--keep", type=int, metavar="N", help="requests the ledger holds (default 200000)")
    add("--keep-prompts", action="store_true", help="the ledger holds prompts, too")
    return parser


def per_service(values: Sequence[str], default: str) -> str | dict[str, str]:
    """Sort ``VALUE`` and ``SERVICE/VALUE`` into one option."""
    by_service = dict.fromkeys(CONTRACTS, default)
    for value in values:
        name, slash, rest = value.partition("/")
        if slash and name in CONTRACTS:
            by_service[name] = rest
        else:
            by_service = dict.fromkeys(CONTRACTS, value)
    return by_service


def settings(options: dict[str, Any]) -> Settings:
    """
    Make the settings of the parsed options.

    :raises ValidationError: if a spec cannot be read.
    """
    for name in PER_SERVICE:
        options[name] = per_service(options[name], "uniform:low=2,high=10" if name == "latency" else "")
    return Settings(**options)


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """Make the context of ``--tls-cert`` and ``--tls-key``."""
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


async def serve(server: Server) -> None:
    """Serve until SIGINT or SIGTERM. The first line on stdout says when and where."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with server:
        services = " ".join(f"{name}={server.base_url(name)}" for name in CONTRACTS)
        print(f"ready {services} control={server.url}/_emulator", flush=True)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments_parser = parser()
    options = vars(arguments_parser.parse_args(arguments))
    host, port = options.pop("host"), options.pop("port")
    try:
        tls = tls_context(options.pop("tls_cert"), options.pop("tls_key"))
        server = Server(settings(options), host=host, port=port, tls=tls)
    except ValidationError as error:
        arguments_parser.error("; ".join(problem["msg"] for problem in error.errors()))
    except OSError as error:
        arguments_parser.error(f"cannot read the certificate or its key: {error}")
    try:
        asyncio.run(serve(server))
    except OSError as error:
        print(f"cannot listen on {host}:{port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
