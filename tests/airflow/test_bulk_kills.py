# SPDX-License-Identifier: Apache-2.0

"""A bulk run that is told to stop, in each of its phases: what it says, and what the next attempt pays."""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, AirflowTaskTimeout

from airflow_provider_distribute.decorators.bulk import async_chat_bulk_task
from tests.airflow.wire import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Attempt, Life
    from tests.airflow.wire import Wire


def kill(*_: object) -> None:
    """Let Airflow's supervisor stop this process: a first, polite signal."""
    assert callable(signal.getsignal(signal.SIGTERM)), "nobody would survive it"
    os.kill(os.getpid(), signal.SIGTERM)


class Fatal(pydantic.BaseModel):
    """What answers must be; reading one is when the worker is told to stop."""

    word: str

    @pydantic.field_validator("word")
    @classmethod
    def _kill(cls, word: str) -> str:
        kill()
        return word


def left(tmp_path: Path) -> dict[str, Any]:
    """Return what the manifest of the only run says about an attempt that was stopped."""
    (run,) = tmp_path.iterdir()
    stopped: dict[str, Any] = json.loads((run / "manifest.json").read_text())["stopped"]
    return stopped


def meanwhile(life: Life, tmp_path: Path, happens: Callable[[Path], object]) -> None:
    """Let something happen to the run's directory when the run is taken up and nothing is sent yet."""

    def notice(msg: object) -> bool:
        if getattr(msg, "key", None) == "run":
            happens(next(tmp_path.iterdir()))
        return False

    life.killed_by = notice


def was_told(attempt: Attempt) -> bool:
    """Return whether the attempt failed for that, and Airflow may retry."""
    return (
        isinstance(attempt.error, AirflowException)
        and not isinstance(attempt.error, AirflowFailException)
        and "told to stop" in attempt.message
    )


class TestTold:
    """``on_kill``, as Airflow calls it: from a signal handler."""

    def test_while_it_checks(
        self, life: Callable[..., Life], service: str, wire: Wire, tmp_path: Path
    ) -> None:
        """Nothing is sent any more."""

        def build() -> Any:
            @async_chat_bulk_task(
                conn_id=f"{service}_default", model=MODELS[service], result_path=tmp_path.as_uri()
            )
            def questions() -> list[str]:
                kill()
                return ["What is 1?"]

            return questions().operator  # type: ignore[attr-defined]

        attempt = life(build).attempt()
        assert was_told(attempt)
        assert wire.submissions == []
        assert left(tmp_path)["not_sent"] == 1

    def test_while_it_sends(self, bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path) -> None:
        """What is under way is recorded, what goes on is told, and the next attempt sends the rest."""
        wire.listener = kill
        life = bulk(tuple(f"What is {number}?" for number in range(100)))
        attempt = life.attempt()
        stopped = left(tmp_path)
        assert was_told(attempt)
        assert 0 < stopped["accepted"]["jobs"] == wire.paid < 100
        assert set(stopped["accepted"]["job_ids"]) == set(wire.job_ids)
        assert (stopped["unknown"]["rows"], stopped["not_sent"]) == (0, 100 - wire.paid)
        assert f"{wire.paid} jobs were accepted since anything was landed" in log.text
        assert wire.job_ids[0] in log.text
        wire.listener = lambda request: None
        assert life.attempt().state == "success"
        assert (wire.paid, life.result["stopped"]) == (100, None)

    def test_while_it_waits(self, bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path) -> None:
        """On the worker; the next attempt waits for the same jobs."""
        wire.fault("never")
        life = bulk(deferrable=False)
        wire.listener = lambda request: kill() if wire.looks else None
        attempt = life.attempt()
        assert was_told(attempt)
        assert left(tmp_path)["accepted"]["jobs"] == 3
        assert "those that have not ended go on, and all are billed" in log.text
        wire.listener = lambda request: None
        for job_id in wire.job_ids:
            wire.finish(job_id)
        assert life.attempt().state == "success"
        assert wire.paid == 3

    def test_while_it_lands(self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path) -> None:
        """No results are better than a part of them; the next attempt lands all, and pays nothing."""
        wire.fault("text", value='{"word": "yes"}')
        life = bulk(output_type=Fatal)
        attempt = life.attempt()
        (run,) = tmp_path.iterdir()
        assert was_told(attempt)
        assert not (run / "results.jsonl").exists()
        assert left(tmp_path)["accepted"]["jobs"] == 3
        retry = life.attempt()
        assert was_told(retry)
        assert wire.paid == 3

    def test_when_everything_is_landed_it_is_too_late(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """The task ends as it would have."""
        wire.fault("text", value='{"word": "yes"}')
        life = bulk(("What is 1?",), output_type=Fatal)
        assert life.attempt().state == "success"


class TestOtherEnds:
    """What else ends an attempt before it has landed."""

    def test_a_timeout(self, bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path) -> None:
        """``execution_timeout`` ends a worker in the middle of anything."""

        def late(request: object) -> None:
            if len(wire.submissions) == 2:
                raise AirflowTaskTimeout

        wire.listener = late
        attempt = bulk().attempt()
        assert isinstance(attempt.error, AirflowTaskTimeout)
        assert "The attempt ends here: AirflowTaskTimeout." in log.text
        assert left(tmp_path)["unknown"]["rows"] + left(tmp_path)["accepted"]["jobs"] == 3

    def test_a_storage_that_is_gone(
        self, bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path
    ) -> None:
        """What cannot be recorded ends the attempt; where the record is, is told."""

        def lose(run: Path) -> None:
            shutil.rmtree(run)
            run.touch()

        life = bulk()
        meanwhile(life, tmp_path, lose)
        attempt = life.attempt()
        assert "Could not" in attempt.message
        assert "What was accepted goes on and is billed" in log.text

    def test_another_attempt_that_took_over(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """It has the run now, and says what goes on; this one says nothing in its place."""

        def overtake(run: Path) -> None:
            last = max((run / "journal").iterdir())
            (run / "journal" / f"{int(last.stem) + 1:08d}.jsonl").write_bytes(b"another's")

        life = bulk()
        meanwhile(life, tmp_path, overtake)
        attempt = life.attempt()
        (run,) = tmp_path.iterdir()
        assert "another attempt" in attempt.message
        assert not (run / "manifest.json").exists()


@pytest.mark.parametrize("verdict", ["refused", "unavailable"])
def test_a_wait_that_ends_early_says_what_goes_on(
    bulk: Callable[..., Life], wire: Wire, verdict: str, log: Log, tmp_path: Path
) -> None:
    """Somebody may think that a failed task costs nothing any more."""
    event = {"verdict": verdict, "message": "It isn't defined"}
    attempt = bulk().attempt(instead_of_trigger={"event": event})
    assert (
        "It isn't defined. What was accepted goes on and is billed; an attempt that finds" in attempt.message
    )
    assert isinstance(attempt.error, AirflowFailException) is (verdict == "refused")
    assert left(tmp_path)["accepted"] == {"jobs": 3, "job_ids": wire.job_ids}
    assert left(tmp_path)["why"] == "It isn't defined."
    assert wire.job_ids[0] in log.text


@pytest.mark.parametrize(
    ("fields", "words", "state"),
    [
        (None, "which this task has used before, cannot be read now", "up_for_retry"),
        ({"password": ""}, "the API key is missing", "failed"),
    ],
)
def test_a_connection_that_cannot_be_used_on_resuming(
    bulk: Callable[..., Life],
    wire: Wire,
    connections: Callable[..., None],
    service: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fields: dict[str, str] | None,
    words: str,
    state: str,
) -> None:
    """It says what goes on, also where that is one look-up that failed; a retry pays nothing again."""
    name, life = f"{service}_default", bulk()

    def change() -> None:
        if fields is None:
            monkeypatch.delenv(f"AIRFLOW_CONN_{name.upper()}")
        else:
            connections(name, **fields)

    attempt = life.attempt(before_resuming=change)
    assert attempt.state == state
    assert words in attempt.message
    assert "What was accepted goes on and is billed; an attempt that finds" in attempt.message
    assert left(tmp_path)["accepted"]["jobs"] == 3
    connections(name)
    assert life.attempt().state == "success"
    assert wire.paid == 3


@pytest.mark.parametrize("traceback", [["Traceback …", "KeyError: 'x'"], None])
def test_a_trigger_that_fails_says_what_goes_on(
    bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path, traceback: list[str] | None
) -> None:
    """However that came about: its trace is in the log, a retry waits for the jobs."""
    failure = {"error": "Trigger failure", "traceback": traceback}
    life = bulk()
    attempt = life.attempt(instead_of_trigger={key: it for key, it in failure.items() if it})
    assert attempt.state == "up_for_retry"
    assert attempt.message.startswith("The trigger failed, and the log says how.")
    assert "What was accepted goes on and is billed" in attempt.message
    assert ("KeyError" in log.text) is (traceback is not None)
    assert left(tmp_path)["accepted"]["jobs"] == 3
    assert life.attempt().state == "success"
    assert wire.paid == 3
