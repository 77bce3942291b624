# SPDX-License-Identifier: Apache-2.0

"""A store of the tests' own, in memory, on which every act can fail or be the last one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

from airflow_provider_distribute.ledger.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Callable

#: Acts that change nothing.
READING = frozenset({"list", "read"})


class Store(AbstractFileSystem):  # type: ignore[misc]
    """
    An object store.

    ``before`` is asked about every act, such as ``("write", "run/journal/00000001.jsonl")``. It may raise;
    and of what is written it lets through the share that it returns, after which ``after`` may raise.

    :param exclusive: Whether it notices that an object which is created exists.
    """

    protocol = "store"
    cachable = False

    def __init__(self, *, exclusive: bool = True) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.exclusive = exclusive
        self.before: Callable[[str, str], float] = lambda act, path: 1.0
        self.after: Callable[[], None] = lambda: None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: folders are parts of names."""

    def ls(self, path: str, detail: bool = False, **_: Any) -> Any:
        """List a folder."""
        self.before("list", path)
        start = f"{path.rstrip('/')}/"
        names = {
            start + name[len(start) :].partition("/")[0] for name in self.objects if name.startswith(start)
        }
        if not names:
            raise FileNotFoundError(path)
        return sorted(names)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        """Read an object."""
        self.before("read", path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object."""
        share = self.before("write", path)
        if mode == "create" and self.exclusive and path in self.objects:
            raise FileExistsError(path)
        if share:
            self.objects[path] = value[: int(len(value) * share)]
        self.after()

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """Open an object to write it; it is there once it is closed."""
        self.before("open", path)
        return _Upload(self, path)

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        """Rename an object, or not."""
        if self.before("move", path2) == 1:
            self.objects[path2] = self.objects.pop(path1)
        self.after()

    def rm_file(self, path: str) -> None:
        """Remove an object, or not."""
        if self.before("remove", path) == 1:
            del self.objects[path]
        self.after()


class _Upload(io.BytesIO):
    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store = store
        self._path = path

    def write(self, data: Any) -> int:
        self._store.before("send", self._path)
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._store.pipe_file(self._path, data)


@dataclass(frozen=True)
class StorePath:
    """A directory on a store."""

    fs: Any
    path: str

    def __str__(self) -> str:
        """Return its URI."""
        return f"store://{self.path}"


def directory_on(store: Any) -> Directory:
    """Return a directory on a store."""
    return Directory(StorePath(store, "run"))


class Failing:
    """
    Lets acts fail.

    :param act: Which kind.
    :param part: On paths that hold this.
    :param times: How often.
    :param after: How many of them go well first.
    """

    def __init__(
        self, act: str, part: str, *, times: int, after: int = 0, error: Exception | None = None
    ) -> None:
        self._act, self._part = act, part
        self._after = after
        self._error = error or OSError("the storage does not answer")
        self.left = times

    def __call__(self, act: str, path: str) -> float:
        """Fail, or let it through."""
        if act == self._act and self._part in path and self.left:
            self._after -= 1
            if self._after < 0:
                self.left -= 1
                raise self._error
        return 1.0
