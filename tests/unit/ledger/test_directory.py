# SPDX-License-Identifier: Apache-2.0

"""A directory on a local disk, on a store, and on those that fail."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import pytest
from upath import UPath

from airflow_provider_distribute.exceptions import LedgerForbidden, LedgerTaken, LedgerUnavailable
from airflow_provider_distribute.ledger.directory import Directory
from tests.unit.storage import Failing, Store, directory_on

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["disk", "store", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    match request.param:
        case "disk":
            return Directory(UPath(tmp_path))
        case "store":
            return directory_on(Store())
        case _:
            return Directory(UPath(f"memory://{uuid4()}"))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def frail(store: Store) -> Directory:
    """A directory on a store that a test lets fail."""
    return directory_on(store)


class TestObjects:
    """Written once, replaced as a whole, or not there."""

    def test_what_is_there_is_read(self, directory: Directory) -> None:
        """And what is not there is an answer."""
        directory.create("folder/a", b"1")
        directory.overwrite("folder/b", b"2")
        directory.overwrite("folder/b", b"3")
        assert (directory.read("folder/a"), directory.read("folder/b")) == (b"1", b"3")
        assert directory.names("folder") == ["a", "b"]
        assert (directory.read("folder/c"), directory.names("nothing")) == (None, [])

    def test_an_object_is_created_once(self, directory: Directory) -> None:
        """Whoever comes second learns it."""
        directory.create("a", b"1")
        with pytest.raises(FileExistsError):
            directory.create("a", b"2")
        assert directory.read("a") == b"1"

    def test_a_stream_replaces_an_object_only_when_it_is_complete(self, directory: Directory) -> None:
        """A reader sees the old one or the new one, and a writer its own exception."""
        directory.overwrite("results", b"old")

        def fail() -> None:
            with directory.replacing("results") as stream:
                stream.write(b"half")
                stream.write(bytes(1 // 0))

        with pytest.raises(ZeroDivisionError):
            fail()
        assert directory.read("results") == b"old"
        with directory.replacing("results") as stream:
            stream.write(b"new")
        assert directory.read("results") == b"new"

    def test_an_object_may_be_kept_from_taking_its_place(self, directory: Directory) -> None:
        """Once it is complete; nothing of it is left."""
        directory.overwrite("results", b"old")

        def keep_out() -> None:
            assert directory.read("results") == b"old"
            raise LedgerTaken("somebody else has it")

        with pytest.raises(LedgerTaken), directory.replacing("results", once_complete=keep_out) as stream:
            stream.write(b"new")
        assert directory.read("results") == b"old"
        assert directory.names("") == ["results"]

    def test_two_who_write_the_same_object_do_not_mix(self, directory: Directory) -> None:
        """Each has a stream of its own; who is complete last has the place."""
        with directory.replacing("results") as one:
            one.write(b"1" * 100)
            with directory.replacing("results") as other:
                other.write(b"2" * 200)
            assert directory.read("results") == b"2" * 200
            one.write(b"1" * 100)
        assert directory.read("results") == b"1" * 200

    def test_a_store_that_lost_its_own_answer_is_believed(self, store: Store, frail: Directory) -> None:
        """It took the object, did not say so, was asked again, and then says that the object exists."""
        failures = [OSError("reset")]

        def lose_the_answer() -> None:
            if failures:
                raise failures.pop()

        store.after = lose_the_answer
        with pytest.raises(LedgerUnavailable):
            frail.create("a", b"1")
        frail.create("a", b"1")
        assert frail.read("a") == b"1"


class TestADiskThatFails:
    """What was begun here is finished here; nothing vanishes that somebody may have seen."""

    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
        """What the next writes fail with; the disk is full for one of them."""
        failures = [OSError(errno.ENOSPC, "No space left on device")]
        fsync = os.fsync

        def fail_once(file: int) -> None:
            if failures:
                raise failures.pop()
            fsync(file)

        monkeypatch.setattr(os, "fsync", fail_once)
        return failures

    @pytest.fixture
    def without_links(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A mounted object store or a memory stick: it has no hard links."""

        def no_link(path: str, to: str) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, "link", no_link)

    def test_an_object_is_created_whole_or_not_at_all(self, tmp_path: Path, full: list[OSError]) -> None:
        """Nobody can read a part of it, however long the writing takes; a write that failed is made again."""
        directory = Directory(UPath(tmp_path))
        with pytest.raises(LedgerUnavailable, match="OSError"):
            directory.create("a", b"whole")
        assert not (tmp_path / "a").exists()
        directory.create("a", b"whole")
        assert (tmp_path / "a").read_bytes() == b"whole"
        with pytest.raises(FileExistsError):
            directory.create("a", b"whole")

    def test_a_link_whose_answer_was_lost_is_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """NFS asks again and hears that the name exists: by its own doing."""
        link = os.link

        def made_twice(path: str, to: str) -> None:
            link(path, to)
            link(path, to)

        monkeypatch.setattr(os, "link", made_twice)
        Directory(UPath(tmp_path)).create("a", b"whole")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_any_other_failure_to_link_is_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not taken for a disk without links."""

        def fail(path: str, to: str) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "link", fail)
        with pytest.raises(LedgerUnavailable):
            Directory(UPath(tmp_path)).create("a", b"whole")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("without_links")
    def test_without_links_a_write_that_failed_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its torn object is no other attempt's."""
        directory, fsync = Directory(UPath(tmp_path)), os.fsync
        failures = [None, OSError(errno.ENOSPC, "No space left on device")]

        def fail_second(file: int) -> None:
            if failures and (failure := failures.pop(0)):
                raise failure
            fsync(file)

        monkeypatch.setattr(os, "fsync", fail_second)
        with pytest.raises(LedgerUnavailable, match="OSError"):
            directory.create("a", b"whole")
        assert (tmp_path / "a").exists()
        directory.create("a", b"whole")
        assert (tmp_path / "a").read_bytes() == b"whole"
        with pytest.raises(FileExistsError):
            directory.create("a", b"whole")

    @pytest.mark.usefixtures("without_links")
    def test_the_torn_object_of_another_is_left_alone(self, tmp_path: Path) -> None:
        """Whoever finds it takes the next name."""
        (tmp_path / "a").write_bytes(b"who")
        with pytest.raises(FileExistsError):
            Directory(UPath(tmp_path)).create("a", b"whole")

    def test_an_object_of_another_is_left_alone(self, tmp_path: Path) -> None:
        """Whoever finds it takes the next name."""
        Directory(UPath(tmp_path)).create("a", b"whole")
        with pytest.raises(FileExistsError):
            Directory(UPath(tmp_path)).create("a", b"whole")
        assert (tmp_path / "a").read_bytes() == b"whole"

    def test_the_old_object_stays_when_a_new_one_cannot_be_written(
        self, tmp_path: Path, full: list[OSError]
    ) -> None:
        """However it is replaced."""
        (tmp_path / "a").write_bytes(b"old")
        directory = Directory(UPath(tmp_path))
        with pytest.raises(LedgerUnavailable):
            directory.overwrite("a", b"new")
        full.append(OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(LedgerUnavailable), directory.replacing("a") as stream:
            stream.write(b"new")
        assert directory.read("a") == b"old"


class TestAStorageThatFails:
    """It is never taken for an empty one, and the message names the place."""

    @pytest.mark.parametrize(
        ("act", "use"),
        [
            ("list", lambda directory: directory.names("folder")),
            ("read", lambda directory: directory.read("folder/a")),
            ("read", lambda directory: list(directory.read_all(["folder/a"]))),
            ("write", lambda directory: directory.create("folder/a", b"1")),
            ("write", lambda directory: directory.overwrite("folder/a", b"1")),
        ],
    )
    def test_every_failure_is_explained(self, store: Store, frail: Directory, act: str, use: Any) -> None:
        """Whatever was asked of it."""
        store.before = Failing(act, "folder", times=1)
        with pytest.raises(LedgerUnavailable, match=r"store://.*/folder") as raised:
            use(frail)
        assert raised.value.transient

    @pytest.mark.parametrize("act", ["open", "send", "write", "move"])
    def test_a_stream_says_what_became_of_it(self, store: Store, frail: Directory, act: str) -> None:
        """At whatever step it fails."""
        store.before = Failing(act, "results", times=1)
        with pytest.raises(LedgerUnavailable, match="results"), frail.replacing("results") as stream:
            stream.write(b"new")
        assert frail.read("results") is None

    def test_a_file_in_the_place_of_a_folder(self, tmp_path: Path) -> None:
        """That is nobody else's object."""
        (tmp_path / "journal").write_text("not a folder")
        with pytest.raises(LedgerUnavailable, match="journal"):
            Directory(UPath(tmp_path)).create("journal/1", b"1")

    @pytest.mark.parametrize(
        "error", [PermissionError("no"), OSError(errno.EROFS, "Read-only file system")], ids=["denied", "ro"]
    )
    def test_what_is_not_allowed_is_not_asked_again(
        self, store: Store, frail: Directory, error: OSError
    ) -> None:
        """A person has to act, and reads what to do."""
        store.before = Failing("write", "a", times=1, error=error)
        with pytest.raises(LedgerForbidden, match=r"Not allowed to write .*/a'.*clear the task") as raised:
            frail.create("a", b"1")
        assert not raised.value.transient

    @pytest.mark.parametrize(
        ("error", "remedy", "transient"),
        [
            (ValueError("no such scheme"), "install the Airflow provider of this storage", False),
            (ImportError("no such package"), "install the Airflow provider of this storage", False),
            (RuntimeError("no such connection"), "try again when the storage answers", True),
        ],
        ids=lambda it: type(it).__name__,
    )
    def test_a_storage_that_cannot_be_opened(self, error: Exception, remedy: str, transient: bool) -> None:
        """No such kind of storage, which no retry mends, or no such Airflow connection for it."""

        def refuse(uri: str) -> Any:
            raise error

        with pytest.raises(LedgerUnavailable, match=rf"{error}.*'odd://run'.*{remedy}") as raised:
            Directory.at("odd://run", refuse)
        assert raised.value.transient is transient


class TestTryingOut:
    """Before anything is paid, a storage shows what it can do."""

    def test_a_good_one(self, directory: Directory) -> None:
        """It notices a second creation, and nothing stays behind."""
        assert directory.try_out()
        assert directory.names("") == []

    def test_one_that_creates_what_exists(self) -> None:
        """Some ignore that they are asked for a new object, and overwrite the old one."""
        assert not directory_on(Store(exclusive=False)).try_out()

    acts: ClassVar = [("write", "trial"), ("open", "trial"), ("move", "trial"), ("remove", "trial")]

    @pytest.mark.parametrize(("act", "part"), acts)
    def test_one_that_allows_too_little(self, store: Store, frail: Directory, act: str, part: str) -> None:
        """Whatever a run will need later."""
        store.before = Failing(act, part, times=1, error=PermissionError("no"))
        with pytest.raises(LedgerForbidden):
            frail.try_out()
