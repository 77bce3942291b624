# SPDX-License-Identifier: Apache-2.0

"""``python -m airflow_provider_distribute.emulator``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from airflow_provider_distribute.emulator import __main__ as command_line
from airflow_provider_distribute.emulator import latency
from tests.emulator.test_server import certificate
from tests.emulator.wire import chat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from airflow_provider_distribute.emulator.settings import Settings

COMMAND = [sys.executable, "-m", "airflow_provider_distribute.emulator"]


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run the command, and read the addresses off its first line."""
    with subprocess.Popen(
        [*COMMAND, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready, *urls = process.stdout.readline().split()
            assert ready == "ready"
            yield process, dict(url.split("=", 1) for url in urls)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_serves_and_stops_cleanly(number: signal.Signals) -> None:
    """The first line has the port the system picked; a signal ends it with 0 and without a word."""
    with running("--key", "k", "--latency", "0") as (process, urls):
        assert urls.keys() == {"distribute", "inference_net", "control"}
        with httpx.Client(headers={"Authorization": "k"}) as client:
            reply = client.post(f"{urls['distribute']}/async/chat/create", json=chat())
            assert reply.status_code == 200
            assert client.get(f"{urls['control']}/stats").json()["paid"] == {"distribute": 1}
            process.send_signal(number)
            output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", "")


def test_it_serves_https(tmp_path: Path) -> None:
    """With a certificate and its key."""
    cert, key = certificate(tmp_path)
    with running("--tls-cert", str(cert), "--tls-key", str(key)) as (_, urls):
        assert urls["distribute"].startswith("https://127.0.0.1:")


def test_it_runs_in_this_process_until_it_is_told_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With https, and a port that was asked for."""
    cert, key = certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def stop_when_ready() -> None:
        for _ in range(1000):
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.01)

    stopper = threading.Thread(target=stop_when_ready)
    stopper.start()
    assert command_line.main(["--port", str(port), "--tls-cert", str(cert), "--tls-key", str(key)]) == 0
    stopper.join()
    assert capsys.readouterr().out.startswith(f"ready distribute=https://127.0.0.1:{port}/distribute ")


def settings(*arguments: str) -> Settings:
    """The settings a command line makes."""
    options = vars(command_line.parser().parse_args(arguments))
    return command_line.settings(
        {k: v for k, v in options.items() if k not in ("host", "port", "tls_cert", "tls_key")}
    )


def test_every_option_reaches_its_setting() -> None:
    """Under the same name."""
    made = settings(
        *("--key", "k", "--seed", "3", "--faults", "500", "--faults", "429:rate=0.1", "--balance", "1.5"),
        *("--time-scale", "10", "--timestamps", "iso", "--auth-prefix", "Bearer ", "--errors", "string"),
        *("--keep", "5", "--keep-prompts", "--rate-limit", "9/s", "--not-found", "looks=1"),
    )
    assert made.model_dump(exclude={"latency"}) == {
        "key": "k",
        "seed": 3,
        "faults": ("500", "429:rate=0.1"),
        "rate_limit": {"distribute": "9/s", "inference_net": "9/s"},
        "not_found": {"distribute": "looks=1", "inference_net": "looks=1"},
        "balance": 1.5,
        "time_scale": 10.0,
        "timestamps": "iso",
        "auth_prefix": "Bearer ",
        "errors": "string",
        "keep": 5,
        "keep_prompts": True,
        "largest_body": 10 << 20,
    }


def test_a_service_may_have_its_own_latency() -> None:
    """Written before a slash; the other keeps the default, or what was given for both."""
    made = settings("--latency", "5", "--latency", "distribute/7")
    assert made.latency_of("distribute") == latency.Constant(seconds=7)
    assert made.latency_of("inference_net") == latency.Constant(seconds=5)
    assert isinstance(settings("--latency", "distribute/7").latency_of("inference_net"), latency.Uniform)


def test_a_rate_limit_has_a_slash_of_its_own() -> None:
    """What stands before it is a service only if there is one of that name."""
    made = settings("--rate-limit", "250/min", "--rate-limit", "inference_net/9/s")
    assert made.rate_limit == {"distribute": "250/min", "inference_net": "9/s"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--latency", "soon"], "soon"),
        (["--faults", "explode"], "no such fault 'explode'"),
        (["--tls-cert", "nowhere.pem"], "cannot read the certificate"),
    ],
)
def test_a_wrong_option_ends_it_with_2_and_the_reason(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """Before anything listens."""
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--port", "0", *arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_port_that_is_taken_ends_it_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """And says which."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command_line.main(["--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
