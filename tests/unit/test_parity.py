# SPDX-License-Identifier: Apache-2.0

"""The two clients are the only twins of the package, and they are held to one text."""

from __future__ import annotations

import inspect
import io
import tokenize

import pytest

from airflow_provider_distribute.client import AsyncClient, Client

#: What differs between the colours: words that only one has, and names that differ.
ONLY_ASYNC = {"async", "await"}
SYNC_NAME_OF = {
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "handle_async_request": "handle_request",
    "asyncio": "time",
}
#: How each opens its transport, and where it reads an answer, is its own business; nothing is asked there.
OWN = {"__init__", "open", "_read"}

LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
}


def methods(kind: type[Client] | type[AsyncClient]) -> dict[str, str]:
    """Return the source of each method that the class itself defines, by its synchronous name."""
    return {
        SYNC_NAME_OF.get(name, name): inspect.getsource(member)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and name not in OWN
    }


def told(source: str) -> list[str]:
    """Return the tokens of a source in the synchronous colour, without layout."""
    tokens = tokenize.generate_tokens(io.StringIO(inspect.cleandoc(source)).readline)
    words = [token.string for token in tokens if token.type not in LAYOUT]
    same = [SYNC_NAME_OF.get(word, word) for word in words if word not in ONLY_ASYNC]
    # A formatter breaks longer lines and then adds a comma.
    return [
        word for word, after in zip(same, [*same[1:], ""], strict=True) if not (word == "," and after == ")")
    ]


def test_the_clients_can_do_the_same() -> None:
    """No method is on one side only, except for opening one without blocking the event loop."""
    assert methods(Client).keys() == methods(AsyncClient).keys()
    assert {name for name in vars(AsyncClient) if not name.startswith("_")} - set(vars(Client)) == {"open"}


@pytest.mark.parametrize("name", methods(Client))
def test_the_clients_say_the_same(name: str) -> None:
    """Token for token, docstrings included, once ``async`` and ``await`` are gone."""
    assert told(methods(AsyncClient)[name]) == told(methods(Client)[name])


@pytest.mark.parametrize("name", methods(Client))
def test_the_clients_take_the_same(name: str) -> None:
    """Parameters, defaults and return values."""
    twin = {sync: other for other, sync in SYNC_NAME_OF.items() if sync in ("__enter__", "__exit__")}.get(
        name, name
    )
    mine, theirs = (inspect.signature(getattr(*pair)) for pair in ((Client, name), (AsyncClient, twin)))
    assert str(theirs).replace("AsyncClient", "Client") == str(mine)


def test_the_clients_are_made_alike() -> None:
    """The constructors take the same arguments, transports of their own colour apart."""
    mine, theirs = (str(inspect.signature(kind)) for kind in (Client, AsyncClient))
    assert theirs.replace("AsyncBaseTransport", "BaseTransport") == mine


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        ("async def f(self):\n    await g(1)\n", "def f(self):\n    g(2)\n"),
        ("async def f(self):\n    await g()\n", "def f(self):\n    g()\n    h()\n"),
    ],
)
def test_a_drift_would_be_seen(theirs: str, mine: str) -> None:
    """The comparison itself: another constant, a forgotten line."""
    assert told(theirs) != told(mine)
    assert told(theirs.replace("await ", "").replace("async ", "")) == told(theirs)
