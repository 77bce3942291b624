# SPDX-License-Identifier: Apache-2.0

"""The few things a ledger asks of a storage."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from airflow_provider_distribute.exceptions import LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Directory", "StoragePath"]

#: Objects read at the same time, and held in memory at once.
_READERS = 8


class StoragePath(Protocol):
    """What we use of Airflow's ``ObjectStoragePath`` or of a ``upath.UPath``."""

    @property
    def fs(self) -> Any:
        """The fsspec filesystem."""

    @property
    def path(self) -> str:
        """The path in that filesystem."""


class Directory:
    """
    A directory of objects.

    Every failure of the storage is a :class:`LedgerUnavailable`; only "there is no such object" is an answer.

    :param path: An ``ObjectStoragePath`` or ``UPath``.
    """

    def __init__(self, path: StoragePath) -> None:
        self.uri = str(path)
        self._fs = path.fs
        self._root = path.path.rstrip("/")
        self._local = "file" in _protocols(self._fs)
        self._made: set[str] = set()

    @classmethod
    def at(cls, uri: str, open_path: Callable[[str], StoragePath]) -> Directory:
        """
        Return the directory at a URI.

        :param open_path: Such as ``ObjectStoragePath``; it may look an Airflow connection up.
        :raises LedgerUnavailable: there is no such kind of storage, or no such connection.
        """
        try:
            return cls(open_path(uri))
        except Exception as error:
            raise LedgerUnavailable(f"open ({type(error).__name__}: {error})", uri) from error

    def below(self, name: str) -> str:
        """Return the URI of an object."""
        return f"{self.uri.rstrip('/')}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def create(self, name: str, data: bytes) -> None:
        """
        Write an object that does not exist yet, durably.

        :raises FileExistsError: somebody else wrote it.
        """
        with self._explained("write", name, but=FileExistsError):
            self._make_parent(name)
            if self._local:
                with open(self._path(name), "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            else:
                self._create(name, data)

    def _create(self, name: str, data: bytes) -> None:
        # A store that took the object and lost the answer is asked again, and then says that it exists.
        try:
            self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            if self._fs.cat_file(self._path(name)) != data:
                raise

    def overwrite(self, name: str, data: bytes) -> None:
        """Write an object, whether it exists or not."""
        with self._explained("write", name):
            self._make_parent(name)
            self._fs.pipe_file(self._path(name), data)

    def read(self, name: str) -> bytes | None:
        """Return an object, or ``None`` when there is none."""
        with self._explained("read", name, but=FileNotFoundError), contextlib.suppress(FileNotFoundError):
            data: bytes = self._fs.cat_file(self._path(name))
            return data
        return None

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none when there is no such folder."""
        with self._explained("list", folder, but=FileNotFoundError), contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache(self._path(folder))
            listed: Iterable[str] = self._fs.ls(self._path(folder), detail=False)
            return sorted(name.rstrip("/").rpartition("/")[2] for name in listed)
        return []

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield objects that must exist, in the order given, reading a few ahead."""
        remaining = iter(names)
        while batch := list(islice(remaining, _READERS)):
            # No thread outlives the batch: a generator may be left unfinished, and closed anywhere.
            with ThreadPoolExecutor(len(batch)) as readers:
                objects = list(readers.map(self._read_existing, batch))
            yield from zip(batch, objects, strict=True)

    def _read_existing(self, name: str) -> bytes:
        with self._explained("read", name):
            data: bytes = self._fs.cat_file(self._path(name))
            return data

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """
        Write an object as a stream, under another name until it is complete.

        A reader sees the old object or the new one, never a part.
        """
        unfinished = f"{name}.unfinished"
        with self._explained("write", unfinished):
            self._make_parent(name)
            stream = self._fs.open(self._path(unfinished), "wb")
        with stream:
            yield stream
        with self._explained("write", name):
            self._fs.mv(self._path(unfinished), self._path(name))

    def _make_parent(self, name: str) -> None:
        parent = self._path(name).rpartition("/")[0]
        if parent not in self._made:
            self._fs.makedirs(parent, exist_ok=True)
            self._made.add(parent)

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str, *, but: type[OSError] | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if but is not None and isinstance(error, but):
                raise
            raise LedgerUnavailable(f"{verb} ({type(error).__name__})", self.below(name)) from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
