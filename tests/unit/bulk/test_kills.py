# SPDX-License-Identifier: Apache-2.0

"""A worker that is killed at any write of the journal, or between two, and the retry that finishes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from upath import UPath

from airflow_provider_distribute.exceptions import LedgerCorrupt, LedgerTaken, LedgerUnavailable
from airflow_provider_distribute.ledger.journal import Journal
from tests.unit.bulk.world import Killed, Mortal, World, prompts

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = 8
ROWS = 24
ASKED = prompts(ROWS)

pytestmark = pytest.mark.usefixtures("impatient")


def killed_attempt(world: World, *, at: int, left: float) -> bool:
    """Run an attempt that is killed at one of its writes; say whether it lived so long."""
    directory = Mortal(UPath(world.path), at=at, left=left)
    try:
        run, staged = world.take_up(ASKED, directory=directory, window=WINDOW)
        asyncio.run(world.submit(run, staged))
    except Killed:
        return True
    return False


def check(world: World, manifest: dict[str, Any], *, kills: int = 1) -> None:
    """Every row is right, and whatever was paid twice is counted."""
    rows = world.results()
    assert [row["output"] for row in rows] == [f"Answer to {prompt}" for prompt in ASKED]
    assert manifest["counts"]["succeeded"] == ROWS
    assert world.service.paid - ROWS <= manifest["duplicates_possible"] <= kills * WINDOW


@pytest.mark.parametrize("left", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_a_kill_at_every_write(tmp_path: Path, left: float) -> None:
    """However much of the object was written: a retry finishes, and pays twice for the window at most."""
    at = 1
    while True:
        world = World(tmp_path / f"run-{at}")
        if not killed_attempt(world, at=at, left=left):
            break
        check(world, world.attempt(ASKED, window=WINDOW))
        at += 1
    assert at > ROWS / WINDOW


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied"])
def test_the_last_object_is_damaged_after_the_kill(tmp_path: Path, damage: str) -> None:
    """It had been written completely, and requests were sent on its strength."""
    for at in range(2, 8):
        world = World(tmp_path / f"run-{at}")
        killed_attempt(world, at=at, left=0.0)
        last = sorted((world.path / "journal").iterdir())[-1]
        data = last.read_bytes()
        match damage:
            case "truncated":
                last.write_bytes(data[: len(data) // 2])
            case "changed":
                last.write_bytes(data[:20] + b"?" + data[21:])
            case _:
                last.write_bytes(b"")
        check(world, world.attempt(ASKED, window=WINDOW))


def test_attempt_after_attempt_is_killed(world: World) -> None:
    """Each one gets a little further, and each kill leaves at most the window unknown."""
    kills = 0
    while killed_attempt(world, at=4, left=0.5):
        kills += 1
    check(world, world.attempt(ASKED, window=WINDOW), kills=kills)
    assert kills >= 2


def test_what_was_recorded_is_never_sent_again(world: World) -> None:
    """Not even when half of the rows were recorded before the kill."""
    killed_attempt(world, at=5, left=0.0)
    recorded = set(Journal(world.directory(), writer="x").read().tickets)
    sent = len(world.service.bodies)
    world.attempt(ASKED, window=WINDOW)
    again = [body["messages"][-1]["content"] for body in world.service.bodies[sent:]]
    assert recorded
    assert not {ASKED[row] for row in recorded} & set(again)


def test_damage_in_the_middle_stops_the_retry(world: World) -> None:
    """Nothing is sent: jobs named there may be running."""
    killed_attempt(world, at=6, left=0.0)
    (world.path / "journal" / "00000003.jsonl").write_bytes(b"")
    sent = len(world.service.bodies)
    with pytest.raises(LedgerCorrupt, match=r"00000003\.jsonl"):
        world.attempt(ASKED, window=WINDOW)
    assert len(world.service.bodies) == sent


def test_a_worker_that_was_taken_for_dead_stops_sending(world: World) -> None:
    """The retry has taken up the run; the first worker finds that at its next write."""
    run, staged = world.take_up(ASKED, window=WINDOW)
    world.take_up(ASKED, window=WINDOW)
    with pytest.raises(LedgerTaken):
        asyncio.run(world.submit(run, staged))
    assert world.service.paid == 0


def test_a_storage_that_fails_for_a_moment_stops_nothing(world: World) -> None:
    """The same object is written again, and nothing new is sent meanwhile."""
    run, staged = world.take_up(ASKED, window=WINDOW)
    write, failures = run.journal.append, [LedgerUnavailable("write", "x")] * 3

    def flaky(records: Any) -> None:
        if failures:
            raise failures.pop()
        write(records)

    run.journal.append = flaky  # type: ignore[method-assign]
    submitted = asyncio.run(world.submit(run, staged))
    assert (submitted.accepted, submitted.stopped, world.service.paid) == (ROWS, None, ROWS)


def test_a_storage_that_is_gone_ends_the_submission(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the record nothing is sent."""
    monkeypatch.setattr("airflow_provider_distribute.bulk.submission._STORAGE_PATIENCE", 0.0)
    run, staged = world.take_up(ASKED, window=WINDOW)

    def gone(records: Any) -> None:
        raise LedgerUnavailable("write", "x")

    run.journal.append = gone  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable):
        asyncio.run(world.submit(run, staged))
    assert world.service.paid == 0
