# SPDX-License-Identifier: Apache-2.0

"""A process that is killed at any instant, a storage that fails, and the attempt that finishes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_distribute.bulk.formats import format_from
from airflow_provider_distribute.bulk.landing import land
from airflow_provider_distribute.bulk.manifest import read_manifest
from airflow_provider_distribute.bulk.output_types import output_type_from
from airflow_provider_distribute.exceptions import (
    LedgerCorrupt,
    LedgerForbidden,
    LedgerTaken,
    LedgerUnavailable,
)
from airflow_provider_distribute.ledger.journal import entry_from
from airflow_provider_distribute.ledger.records import Accepted
from airflow_provider_distribute.ledger.requests import RequestWriter
from tests.unit.bulk.world import Killed, Life, Service, World, prompts, question_in
from tests.unit.storage import Failing, Store

if TYPE_CHECKING:
    from tests.unit.clock import Clock

WINDOW = 2
ROWS = 6
#: Every third question needs a repair.
REPAIRS = 2
ASKED = prompts(ROWS)


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


class Careless(Service):
    """Answers every third question wrongly the first time."""

    def content_of(self, job_id: str) -> str | None:
        """Return what a job answers."""
        question, _, time = job_id.rpartition("#")
        wrong = time == "0" and int(question.rpartition(" ")[2]) % (ROWS // REPAIRS) == 0
        return "no JSON" if wrong else json.dumps({"word": question})


class Repaired:
    """A run with repairs, in attempts that may be killed."""

    def __init__(self, clock: Clock) -> None:
        self.store = Store()
        self.world = World(Path(), Careless(), store=self.store, clock=clock)
        self.kills = 0

    def attempt(self, life: Life) -> dict[str, Any] | None:
        """Live a life; return the manifest, if it is long enough for one."""
        self.world.lead(life)
        try:
            return self.world.attempt(
                ASKED, window=WINDOW, repair_attempts=1, output_type=output_type_from(Word)
            )
        except Killed:
            self.kills += 1
            return None

    @property
    def journal(self) -> list[str]:
        """The paths of the journal's objects."""
        return sorted(path for path in self.store.objects if "/journal/" in path)

    def answered_well(self) -> set[str]:
        """Return the questions for which the journal names a job whose answer is good."""
        entries = [
            entry_from(number, self.store.objects[path]) for number, path in enumerate(self.journal, 1)
        ]
        accepted = [record for entry in entries for record in entry.records if isinstance(record, Accepted)]
        jobs = {ticket.id for record in accepted for ticket in record.tickets}
        return {job.rpartition("#")[0] for job in jobs if self.world.service.content_of(job) != "no JSON"}

    def finish(self) -> None:
        """Make an attempt that is not killed; every row is right, and no more is paid than has to be."""
        good, sent = self.answered_well(), len(self.world.service.bodies)
        manifest = self.attempt(Life())
        assert manifest is not None
        assert [row["output"] for row in self.world.results()] == [{"word": question} for question in ASKED]
        assert not good & {question_in(body) for body in self.world.service.bodies[sent:]}
        twice = self.world.service.paid - ROWS - REPAIRS
        assert twice <= manifest["duplicates_possible"] <= self.kills * WINDOW


def damage(data: bytes, where: float, flip: int) -> bytes:
    """Change one byte of an object, at a share of its length, or truncate it there."""
    place = int(where * len(data))
    return data[:place] + (bytes([data[place] ^ flip]) + data[place + 1 :] if flip and data else b"")


class TestKills:
    """Between any two things a process does to the store or the service, and in the middle of each."""

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_a_kill_at_every_instant(self, clock: Clock, share: float) -> None:
        """While it checks, sends, waits, lands, repairs and settles: the next attempt finishes."""
        at = 1
        while not (run := Repaired(clock)).attempt(Life(at, share)):
            run.finish()
            at += 1
        assert at > 50

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.tuples(
                st.integers(6, 60),
                st.sampled_from([0.0, 0.3, 0.9, 1.0]),
                st.none() | st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
            ),
            max_size=4,
        )
    )
    def test_kill_after_kill_and_damage(self, clock: Clock, lives: list[tuple[int, float, Any]]) -> None:
        """Sometimes what an attempt wrote last into the journal is damaged as well."""
        run = Repaired(clock)
        for at, share, harm in lives:
            run.attempt(Life(at, share))
            if run.journal and harm:
                run.store.objects[run.journal[-1]] = damage(run.store.objects[run.journal[-1]], *harm)
        run.finish()

    def test_every_attempt_is_killed_until_one_comes_through(self, clock: Clock) -> None:
        """Each one gets a little further."""
        run = Repaired(clock)
        while not run.attempt(Life(35, 0.5)):
            assert run.kills < 20
        assert run.kills >= 2
        run.finish()

    def test_damage_in_the_middle_stops_the_next_attempt(self, clock: Clock) -> None:
        """Nothing is sent: jobs named there may be running."""
        run = Repaired(clock)
        run.attempt(Life(30))
        run.store.objects[run.journal[1]] = b""
        sent = len(run.world.service.bodies)
        with pytest.raises(LedgerCorrupt, match=r"00000002\.jsonl"):
            run.attempt(Life())
        assert len(run.world.service.bodies) == sent


class TestAStorageThatFails:
    """Nothing is sent without the record, and a moment's trouble stops nothing."""

    @pytest.mark.parametrize("after", range(6))
    def test_a_write_that_fails_for_a_moment(self, timeless: World, after: int) -> None:
        """The same object is written again, and nothing new is sent meanwhile."""
        assert timeless.store
        run, staged = timeless.take_up(ASKED, window=WINDOW)
        timeless.store.before = failing = Failing("write", "/journal/", times=3, after=after)
        submitted = timeless.run(timeless.submit(run, staged))
        assert (submitted.accepted, submitted.stopped, failing.left) == (ROWS, None, 0)
        state = run.journal.read()
        assert (timeless.service.paid, state.duplicates, state.unknown) == (ROWS, 0, set())

    @pytest.mark.parametrize("act", ["list", "read"])
    def test_a_read_that_fails_for_a_moment(
        self, timeless: World, monkeypatch: pytest.MonkeyPatch, act: str
    ) -> None:
        """Every request is read and sent once, wherever in the file it happens."""
        monkeypatch.setattr("airflow_provider_distribute.ledger.requests._FULL", 500)
        assert timeless.store
        run, staged = timeless.take_up(prompts(60), window=WINDOW)
        timeless.store.before = failing = Failing(act, "/requests/", times=2, after=0 if act == "list" else 5)
        submitted = timeless.run(timeless.submit(run, staged))
        assert failing.left == 0
        state = run.journal.read()
        assert (submitted.accepted, submitted.stopped, set(state.sends)) == (60, None, {1})

    def test_requests_that_cannot_be_read_end_the_submission(
        self, timeless: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was sent by then is recorded: nothing is left unknown, and nothing is paid twice."""
        monkeypatch.setattr("airflow_provider_distribute.ledger.requests._FULL", 500)
        assert timeless.store
        run, staged = timeless.take_up(prompts(60), window=WINDOW)
        path = sorted(path for path in timeless.store.objects if "/requests/" in path)[-3]
        timeless.store.objects[path] = b"garbage"
        with pytest.raises(LedgerCorrupt, match="requests"):
            timeless.run(timeless.submit(run, staged))
        state = run.journal.read()
        assert 0 < timeless.service.paid == len(state.tickets) < 60
        assert state.unknown == set()

    def test_a_storage_that_is_gone(self, timeless: World) -> None:
        """It is tried for minutes; then the attempt ends, and another one can go on."""
        assert timeless.store
        assert timeless.clock
        run, staged = timeless.take_up(ASKED, window=WINDOW)
        timeless.store.before = Failing("write", "/journal/", times=1000)
        started = timeless.clock.monotonic()
        with pytest.raises(LedgerUnavailable):
            timeless.run(timeless.submit(run, staged))
        assert 200 < timeless.clock.monotonic() - started < 400
        assert timeless.service.paid == 0

    def test_a_storage_that_does_not_allow_it_any_more(self, timeless: World) -> None:
        """Asking again would not help."""
        assert timeless.store
        run, staged = timeless.take_up(ASKED, window=WINDOW)
        timeless.store.before = Failing("write", "/journal/", times=1, error=PermissionError("no"))
        with pytest.raises(LedgerForbidden):
            timeless.run(timeless.submit(run, staged))
        assert timeless.service.paid == 0

    @pytest.mark.usefixtures("impatient")
    def test_a_disk_that_is_full_for_a_moment(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The attempt's own torn object is not taken for another attempt's."""
        run, staged = world.take_up(ASKED, window=WINDOW)
        fsync, calls = os.fsync, iter(range(100))

        def full_now_and_then(file: int) -> None:
            if next(calls) % 3 == 1:
                raise OSError(28, "No space left on device")
            fsync(file)

        monkeypatch.setattr(os, "fsync", full_now_and_then)
        submitted = world.run(world.submit(run, staged))
        assert (submitted.accepted, run.journal.read().unknown) == (ROWS, set())


class TestTwoAttemptsAtOnce:
    """The newer one goes on; the older one finds that at its next write."""

    def test_a_worker_that_was_taken_for_dead_stops_sending(self, timeless: World) -> None:
        """Nothing that it intended before is lost to the newer one."""
        run, staged = timeless.take_up(ASKED, window=WINDOW)
        newer, _ = timeless.take_up(ASKED, window=WINDOW)
        with pytest.raises(LedgerTaken):
            timeless.run(timeless.submit(run, staged))
        assert timeless.service.paid == 0
        with pytest.raises(LedgerTaken):
            run.settle(set(), set())
        newer.settle(set(), set())

    @pytest.mark.parametrize("rows_landed", [0, 60, 100])
    def test_results_of_a_worker_that_was_taken_for_dead_never_count(
        self, world: World, rows_landed: int
    ) -> None:
        """It lands, however slowly, while two newer attempts ask the bad rows again: a reader sees theirs."""
        world.service.answer = lambda prompt: "ERROR" if prompt.endswith("7") else prompt
        asked = prompts(100)
        older, staged = world.take_up(asked)
        world.run(world.submit(older, staged))
        world.run(world.collect())
        older.state = older.journal.read()
        rows, manifests = iter(range(200)), []

        def overtake() -> None:
            if next(rows) == min(rows_landed, 99):
                world.attempt(asked)
                world.service.answer = lambda prompt: prompt
                manifests.append(world.attempt(asked))

        with pytest.raises(LedgerTaken):
            land(older, format_from("jsonl"), before_row=overtake)
        assert [row["output"] for row in world.results()] == asked
        assert read_manifest(world.directory()) == manifests[0]
        assert [path for path in world.path.iterdir() if path.name.endswith(".unfinished")] == []

    def test_a_worker_that_is_killed_while_it_repairs_forgets_no_bad_row(self, timeless: World) -> None:
        """What was landed is settled before anything is asked again."""
        timeless.service.answer = lambda prompt: {"Question 0": "ERROR", "Question 1": "no JSON"}.get(
            prompt, '{"word": "yes"}'
        )
        plan: dict[str, Any] = {"output_type": output_type_from(Word)}
        run, staged = timeless.take_up(prompts(3), **plan)
        timeless.run(timeless.submit(run, staged))
        timeless.run(timeless.collect())
        run.state = run.journal.read()
        landing = land(run, format_from("jsonl"), repair=RequestWriter(run.directory, "repairs/x"))
        run.ask_again(set(landing.repairs))
        timeless.service.answer = lambda prompt: '{"word": "yes"}'
        sent = len(timeless.service.bodies)
        manifest = timeless.attempt(prompts(3), **plan)
        again = [question_in(body) for body in timeless.service.bodies[sent:]]
        assert (again, manifest["counts"]["succeeded"]) == (["Question 0", "Question 1"], 3)
