# SPDX-License-Identifier: Apache-2.0

"""No journal here is a first attempt only to somebody who knows of no earlier one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from tests.airflow.supervisor import HAS_STATE_STORE
from tests.airflow.wire import Killed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire

needs_store = pytest.mark.skipif(not HAS_STATE_STORE, reason="this Airflow has no task state store")


def killed_once_sent(life: Life) -> None:
    """Let the first attempt die when everything is sent."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        life.attempt(before_trigger=die)


def hide(tmp_path: Path) -> Path:
    """Let the run's directory vanish, as an unmounted volume does; return where it is kept."""
    (run,) = tmp_path.iterdir()
    kept = tmp_path.with_name(f"{tmp_path.name}-unmounted")
    shutil.move(run, kept)
    return kept


def vanish(tmp_path: Path) -> None:
    """The same for somebody who does not want it back."""
    hide(tmp_path)


@needs_store
class TestNoted:
    """From Airflow 3.3 on, where a run is recorded is noted for the attempts that follow."""

    def test_a_directory_that_is_gone_is_not_paid_again(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """The task fails for good and says what to do."""
        life = bulk()
        killed_once_sent(life)
        hide(tmp_path)
        attempt = life.attempt()
        assert isinstance(attempt.error, AirflowFailException)
        assert "Could not find the run that an earlier attempt recorded in" in attempt.message
        assert "Mount or restore that directory" in attempt.message
        assert "on_input_change='restart'" in attempt.message
        assert wire.paid == 3

    def test_it_goes_on_once_the_directory_is_back(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """Nothing is paid twice."""
        life = bulk()
        killed_once_sent(life)
        (run,) = tmp_path.iterdir()
        kept = hide(tmp_path)
        life.attempt()
        shutil.rmtree(run, ignore_errors=True)
        shutil.move(kept, run)
        assert life.attempt().state == "success"
        assert wire.paid == 3

    def test_another_result_path_is_noticed(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """A template that renders otherwise is an accident, too."""
        place = tmp_path / "here"
        life = bulk(result_path=place.as_uri())
        killed_once_sent(life)
        moved: Any = bulk(result_path=(tmp_path / "there").as_uri())
        moved.store, moved.try_number = life.store, life.try_number
        attempt = moved.attempt()
        assert isinstance(attempt.error, AirflowFailException)
        assert "Could not go on in" in attempt.message
        assert "/here/" in attempt.message
        assert wire.paid == 3

    def test_an_author_may_start_over(
        self, bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path
    ) -> None:
        """And pay anew; the log says what is left behind."""
        life = bulk(on_input_change="restart")
        killed_once_sent(life)
        hide(tmp_path)
        assert life.attempt().state == "success"
        assert "which is left behind: starting over" in log.text
        assert wire.paid == 6

    def test_a_run_that_is_delivered_is_not_noted_any_more(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """Whoever removes the results and clears the task wants it all again."""
        life = bulk()
        noted: list[dict[str, Any]] = []
        life.attempt(before_trigger=lambda: noted.append(dict(life.store)))
        assert [list(store.values()) for store in noted] == [[life.result["run"]]]
        assert life.store == {}
        hide(tmp_path)
        assert life.attempt().state == "success"
        assert wire.paid == 6

    def test_a_run_that_failed_stays_noted(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """A retry needs it."""
        wire.fault("error", count=1)
        life = bulk()
        life.attempt()
        assert len(life.store) == 1

    def test_a_note_that_cannot_be_read_is_not_no_note(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Nothing is sent; a retry reads it."""
        life = bulk()
        life.store_fails = True
        attempt = life.attempt()
        assert attempt.state == "up_for_retry"
        assert wire.submissions == []

    def test_a_note_that_cannot_be_dropped_fails_nothing(
        self, bulk: Callable[..., Life], monkeypatch: pytest.MonkeyPatch, log: Log
    ) -> None:
        """The results are delivered by then."""
        life = bulk()

        def fails(msg: object) -> None:
            raise ConnectionError("gone")

        monkeypatch.setattr(life, "_on_DeleteTaskStateStore", fails)
        assert life.attempt().state == "success"
        assert "could not be dropped" in log.text


@pytest.mark.skipif(HAS_STATE_STORE, reason="this Airflow has a task state store")
def test_without_a_store_a_retry_that_finds_no_run_says_so(
    bulk: Callable[..., Life], wire: Wire, log: Log, tmp_path: Path
) -> None:
    """It may be the first to come so far, or it pays again."""
    life = bulk()
    killed_once_sent(life)
    assert "This is not the first attempt" not in log.text
    hide(tmp_path)
    assert life.attempt().state == "success"
    assert "This is not the first attempt, and there is no run in" in log.text


def test_a_triggerer_that_does_not_see_the_run_leads_to_no_retry(
    bulk: Callable[..., Life], wire: Wire, tmp_path: Path
) -> None:
    """Retries would pay as often as there are, where the worker's disk is another one each time."""
    life = bulk()
    attempt = life.attempt(before_trigger=lambda: vanish(tmp_path))
    assert isinstance(attempt.error, AirflowFailException)
    assert "has to see what the worker wrote" in attempt.message
    assert "instead of paying again" not in attempt.message
    assert attempt.message.endswith("What was accepted goes on and is billed.")


def test_a_worker_that_does_not_see_the_run_any_more(
    bulk: Callable[..., Life], wire: Wire, tmp_path: Path
) -> None:
    """The storage has answered: trying again does not help, bringing the directory back does."""
    life = bulk()
    attempt = life.attempt(before_resuming=lambda: vanish(tmp_path))
    assert isinstance(attempt.error, AirflowFailException)
    assert "Could not find the run that was waited for" in attempt.message
    assert "Mount or restore that directory" in attempt.message
