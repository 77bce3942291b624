# SPDX-License-Identifier: Apache-2.0

"""
Run uv with the package indexes that pip is configured for on this machine.

uv does not read pip's configuration: where a mirror is set up for pip alone, uv would go to the public
registry, which may be out of reach. Usage: ``python .ci/uv.py <arguments of uv>``, in an environment that has
pip and uv.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

SCOPES = ("global", "install", ":env:")
"""Sections of pip's configuration, the strongest last."""

UV_VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""pip's option to the environment variable by which uv takes the same."""

SEPARATORS = {"UV_FIND_LINKS": ","}


def pip_options() -> dict[str, str]:
    """Return the options that pip has from its files and the environment."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found: dict[str, dict[str, str]] = {scope: {} for scope in SCOPES}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        scope, _, option = key.partition(".")
        if scope in found:
            found[scope][option] = ast.literal_eval(value)
    return {option: value for scope in SCOPES for option, value in found[scope].items()}


def uv_environment(options: dict[str, str]) -> dict[str, str]:
    """Return the environment variables of uv that say what ``options`` say to pip."""
    environment = {
        variable: SEPARATORS.get(variable, " ").join(options[option].split())
        for option, variable in UV_VARIABLES.items()
        if option in options
    }
    # Like pip: the best version of all indexes, and no interpreter that is not on the machine.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_PYTHON_DOWNLOADS": "never", **environment}


if __name__ == "__main__":
    uv = str(Path(sys.executable).with_name("uv"))
    os.execve(uv, [uv, *sys.argv[1:]], {**uv_environment(pip_options()), **os.environ})
