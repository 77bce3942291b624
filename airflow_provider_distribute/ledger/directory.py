# SPDX-License-Identifier: Apache-2.0

"""The few things a ledger asks of a storage."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from airflow_provider_distribute.exceptions import LedgerForbidden, LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Directory", "StoragePath"]

#: Objects read at the same time, and held in memory at once.
READERS = 8
#: What opening a path raises where no package knows its scheme, or one that it needs is missing.
UNKNOWN_STORAGE = (ValueError, ImportError)
#: How disks, and what is mounted like one, say that they know no links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
INSTALL_STORAGE = "install the Airflow provider of this storage, or correct the URI"


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

    Every failure of the storage is a :class:`LedgerUnavailable`, or a :class:`LedgerForbidden` where asking
    again cannot help; only "there is no such object" is an answer.

    :param path: An ``ObjectStoragePath`` or ``UPath``.
    """

    def __init__(self, path: StoragePath) -> None:
        self.uri = str(path)
        self._fs = path.fs
        self._root = path.path.rstrip("/")
        self._store = (_Disk if "file" in _protocols(self._fs) else _Store)(self._fs)
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
        except UNKNOWN_STORAGE as error:
            remedy = f"{INSTALL_STORAGE}, then clear the task"
            raise LedgerUnavailable(_opening(error), uri, remedy=remedy, transient=False) from error
        except Exception as error:
            raise LedgerUnavailable(_opening(error), uri) from error

    def below(self, name: str) -> str:
        """Return the URI of an object."""
        return f"{self.uri.rstrip('/')}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def try_out(self) -> bool:
        """
        Create an object, replace it and remove it: what cannot be done fails here, before anything is paid.

        :returns: Whether the storage notices that an object exists already. On one that does not, two
            attempts at once overwrite each other's records.
        """
        name = f"trial-{uuid.uuid4().hex}"
        self.create(name, b"1")
        try:
            self.create(name, b"2")
        except FileExistsError:
            notices = True
        else:
            notices = False
        with self.replacing(name) as stream:
            stream.write(b"3")
        with self._explained("remove", name):
            self._store.remove(self._path(name))
        return notices

    def create(self, name: str, data: bytes) -> None:
        """
        Write an object that does not exist yet, durably.

        After a failure it can be tried again with the same data.

        :raises FileExistsError: somebody else wrote it.
        """
        self._make_parent(name)
        with self._explained("write", name, but=FileExistsError):
            self._store.create(self._path(name), data)

    def overwrite(self, name: str, data: bytes) -> None:
        """Write an object, whether it exists or not, durably."""
        self._make_parent(name)
        with self._explained("write", name):
            self._store.overwrite(self._path(name), data)

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
        while batch := list(islice(remaining, READERS)):
            # No thread outlives the batch: a generator may be left unfinished, and closed anywhere.
            with ThreadPoolExecutor(len(batch)) as readers:
                objects = list(readers.map(self._read_existing, batch))
            yield from zip(batch, objects, strict=True)

    def _read_existing(self, name: str) -> bytes:
        with self._explained("read", name):
            data: bytes = self._fs.cat_file(self._path(name))
            return data

    @contextlib.contextmanager
    def replacing(
        self, name: str, *, once_complete: Callable[[], object] = lambda: None
    ) -> Iterator[BinaryIO]:
        """
        Write an object as a stream, under a name of its own until it is complete.

        A reader sees the old object or the new one, never a part, however many write it at once.

        :param once_complete: Called before it takes its place; what it raises leaves the old object there.
        """
        unfinished = f"{name}.{uuid.uuid4().hex}.unfinished"
        self._make_parent(name)
        with self._explained("write", unfinished):
            stream = self._store.open(self._path(unfinished))
        try:
            yield cast("BinaryIO", _Stream(stream, lambda: self._explained("write", unfinished)))
            with self._explained("write", unfinished):
                self._store.finish(stream)
            once_complete()
        except BaseException:
            with contextlib.suppress(Exception):
                stream.close()
                self._store.remove(self._path(unfinished))
            raise
        with self._explained("write", name):
            self._store.rename(self._path(unfinished), self._path(name))

    def _make_parent(self, name: str) -> None:
        parent = self._path(name).rpartition("/")[0]
        if parent not in self._made:
            with self._explained("write", name):
                self._fs.makedirs(parent, exist_ok=True)
            self._made.add(parent)

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str, *, but: type[OSError] | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if but is not None and isinstance(error, but):
                raise
            raise _kind(error)(f"{verb} ({type(error).__name__})", self.below(name)) from error


def _opening(error: Exception) -> str:
    return f"open ({type(error).__name__}: {error})"


def _kind(error: Exception) -> type[LedgerUnavailable | LedgerForbidden]:
    forbidden = isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS
    return LedgerForbidden if forbidden else LedgerUnavailable


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class _Stream:
    """A stream that explains why it cannot be written."""

    def __init__(self, stream: Any, explained: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._stream = stream
        self._explained = explained

    def write(self, data: bytes) -> int:
        with self._explained():
            written: int = self._stream.write(data)
            return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Store:
    """Writes to an object store, on which an object is there completely or not at all."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def create(self, path: str, data: bytes) -> None:
        # A store that took the object and lost the answer is asked again, and then says that it exists.
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            if self._fs.cat_file(path) != data:
                raise

    def overwrite(self, path: str, data: bytes) -> None:
        self._fs.pipe_file(path, data)

    def open(self, path: str) -> Any:
        return self._fs.open(path, "wb")

    def finish(self, stream: Any) -> None:
        stream.close()

    def rename(self, path: str, to: str) -> None:
        self._fs.mv(path, to)

    def remove(self, path: str) -> None:
        self._fs.rm_file(path)


class _Disk(_Store):
    """Writes to a local disk, on which an object may be there in part, and lost with the power."""

    def __init__(self, fs: Any) -> None:
        super().__init__(fs)
        self._begun: set[str] = set()

    def create(self, path: str, data: bytes) -> None:
        # Under its own name only once it is complete: whoever read a part of it would take it for all.
        unfinished = self._unfinished(path, data)
        try:
            os.link(unfinished, path)
        except FileExistsError:
            # A network's file system may have made the link, lost the answer and asked again.
            if os.stat(unfinished).st_nlink == 1:
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._create_in_place(path, data)
        finally:
            with contextlib.suppress(OSError):
                os.remove(unfinished)

    def _create_in_place(self, path: str, data: bytes) -> None:
        # What was begun here and failed is written over. Removing it would leave a gap in the numbers of
        # whoever has seen it meanwhile.
        with open(path, "wb" if path in self._begun else "xb") as file:
            self._begun.add(path)
            file.write(data)
            self.finish(file)
        self._begun.discard(path)

    def overwrite(self, path: str, data: bytes) -> None:
        self.rename(self._unfinished(path, data), path)

    def _unfinished(self, path: str, data: bytes) -> str:
        # Two threads, or a worker and a triggerer, may write the same object at once.
        unfinished = f"{path}.{uuid.uuid4().hex}.unfinished"
        with open(unfinished, "xb") as file:
            file.write(data)
            self.finish(file)
        return unfinished

    def open(self, path: str) -> Any:
        return open(path, "wb")

    def finish(self, stream: Any) -> None:
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()

    def rename(self, path: str, to: str) -> None:
        os.replace(path, to)
