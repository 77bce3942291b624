# SPDX-License-Identifier: Apache-2.0

"""Bulk runs through Airflow's own task runner: worker, triggerer, worker."""

from __future__ import annotations

import inspect
import json
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, ObjectStoragePath

from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.decorators.bulk import async_chat_bulk_task
from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator
from airflow_provider_distribute.operators.lineage import lineage_of
from tests.airflow.wire import MODELS, Killed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.airflow.conftest import Log
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire


def rows_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    with open(manifest["results"].removeprefix("file://"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class TestRuns:
    """From requests to a manifest."""

    def test_a_run_defers_and_lands(self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path) -> None:
        """One trigger with small arguments; XCom gets the manifest only."""
        life = bulk()
        attempt = life.attempt()
        assert (attempt.state, len(attempt.triggers)) == ("success", 1)
        (path, arguments), manifest = attempt.triggers[0], life.result
        assert path == "airflow_provider_distribute.triggers.bulk.AsyncChatBulkTrigger"
        assert arguments.keys() == {"conn_id", "run_uri", "deadline", "poke_interval"}
        assert len(json.dumps(arguments)) < 1024
        assert "choices" not in json.dumps(attempt.events)
        assert manifest["counts"]["succeeded"] == 3
        assert manifest["results"].startswith(tmp_path.as_uri())
        assert [row["index"] for row in rows_of(manifest)] == [0, 1, 2]
        assert wire.paid == 3

    def test_a_downstream_task_may_name_a_field_of_the_manifest(self, bulk: Callable[..., Life]) -> None:
        """As ``operator.output["results"]``."""
        life = bulk()
        life.attempt()
        assert life.xcom("results") == life.result["results"]

    def test_its_directory_is_known_while_it_waits(self, bulk: Callable[..., Life], tmp_path: Path) -> None:
        """In an XCom: people and other tasks can look at its progress."""
        life = bulk()
        seen: list[str] = []
        life.attempt(before_trigger=lambda: seen.append(life.xcom("run")))
        assert seen == [life.result["run"]] == [next(tmp_path.iterdir()).as_uri()]

    def test_results_may_be_a_table(self, bulk: Callable[..., Life]) -> None:
        """Parquet, by the author's choice."""
        parquet = pytest.importorskip("pyarrow.parquet")
        life = bulk(results_format="parquet")
        life.attempt()
        rows = parquet.read_table(life.result["results"].removeprefix("file://")).to_pylist()
        assert life.result["results"].endswith("/results.parquet")
        assert [row["status"] for row in rows] == ["succeeded"] * 3

    def test_results_may_be_those_of_a_batch(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """For readers of OpenAI's."""
        wire.fault("error", count=1)
        life = bulk(results_format="openai_batch", failure_tolerance=1.0)
        life.attempt()
        lines = rows_of(life.result)
        assert [line["custom_id"] for line in lines] == ["row-0", "row-1", "row-2"]
        assert [line["response"] is None for line in lines].count(True) == 1
        assert [line["error"] is None for line in lines].count(False) == 1

    def test_a_file_of_requests(self, bulk: Callable[..., Life], tmp_path: Path) -> None:
        """By its URI; custom ids come back."""
        lines = [json.dumps({"custom_id": f"c{number}", "prompt": "What?"}) for number in range(5)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        life = bulk((tmp_path / "in.jsonl").as_uri())
        assert life.attempt().state == "success"
        assert [row["custom_id"] for row in rows_of(life.result)] == ["c0", "c1", "c2", "c3", "c4"]

    @pytest.mark.parametrize(
        ("prompt", "asked"),
        [
            ('Answer as {{"label": 1}}: {text}', 'Answer as {"label": 1}: a {{ b }}'),
            ("Write {{label}} for {text}", "Write {label} for a {{ b }}"),
            ("Put {text} into {{% %}}", "Put a {{ b }} into {% %}"),
        ],
    )
    def test_a_prompt_for_a_table_may_hold_braces(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path, prompt: str, asked: str
    ) -> None:
        """It is one kind of template, not two; what a cell holds is none."""
        (tmp_path / "in.csv").write_text("text\na {{ b }}\n")
        life = bulk((tmp_path / "in.csv").as_uri(), prompt=prompt, result_path=(tmp_path / "runs").as_uri())
        assert life.attempt().state == "success"
        assert [body["messages"][-1]["content"] for body in wire.submissions] == [asked]

    def test_a_worker_may_wait_itself(self, bulk: Callable[..., Life]) -> None:
        """With the same outcome and no trigger."""
        life = bulk(deferrable=False)
        attempt = life.attempt()
        assert (attempt.state, attempt.triggers, life.result["counts"]["succeeded"]) == ("success", [], 3)

    def test_a_dry_run_sends_and_writes_nothing(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """It counts and estimates, and needs no place for results."""
        life = bulk(dry_run=True, result_path=None)
        assert life.attempt().state == "success"
        assert (life.result["rows"], life.result["dry_run"], wire.requests) == (3, True, [])
        assert "results" not in life.result
        assert list(tmp_path.iterdir()) == []

    def test_where_requests_come_from_travels_with_them(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Dag, run, task, map index and place in the input."""
        bulk().attempt()
        sent = [json.loads(request.content) for request in wire.requests if b"messages" in request.content]
        assert sorted(str(body["metadata"]["airflow_index"]) for body in sent) == ["0", "1", "2"]
        assert {body["metadata"]["airflow_task_id"] for body in sent} == {"questions"}

    def test_the_configuration_may_name_the_place(
        self, bulk: Callable[..., Life], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In section distribute."""
        monkeypatch.setenv("AIRFLOW__DISTRIBUTE__RESULT_PATH", (tmp_path / "configured").as_uri())
        life = bulk(result_path=None)
        life.attempt()
        assert "/configured/" in life.result["results"]

    def test_a_decorated_function_returns_the_requests(
        self, life: Callable[..., Life], service: str, tmp_path: Path
    ) -> None:
        """What it returns is not a template."""

        def build() -> Any:
            @async_chat_bulk_task(
                conn_id=f"{service}_default", model=MODELS[service], result_path=tmp_path.as_uri()
            )
            def questions(count: int) -> list[str]:
                return [f"What is {{{{ {number} }}}}?" for number in range(count)]

            return questions(2).operator  # type: ignore[attr-defined]

        decorated = life(build)
        assert decorated.attempt().state == "success"
        assert decorated.result["rows"] == decorated.xcom("rows") == 2

    def test_a_bare_decorator(
        self, life: Callable[..., Life], wire: Wire, tmp_path: Path, connections: Any, monkeypatch: Any
    ) -> None:
        """The connection says the model, the configuration the place, the function the requests."""
        monkeypatch.setenv("AIRFLOW__DISTRIBUTE__RESULT_PATH", tmp_path.as_uri())
        connections("distribute_default", extra={"model": MODELS["distribute"]})

        def build() -> Any:
            @async_chat_bulk_task
            def questions() -> list[str]:
                return ["What is 1?", "What is 2?"]

            return questions().operator  # type: ignore[attr-defined]

        bare = life(build)
        assert bare.attempt().state == "success"
        assert [row["status"] for row in rows_of(bare.result)] == ["succeeded"] * 2
        assert wire.paid == 2

    def test_an_input_split_over_tasks(self, service: str, tmp_path: Path) -> None:
        """Each mapped task takes its part."""
        from airflow.sdk import DAG

        with DAG("d", schedule=None):
            mapped = AsyncChatBulkOperator.sharded(split=3, task_id="t", requests="in.jsonl")
        assert mapped.partial_kwargs["split"] == 3
        assert mapped.expand_input.value == {"shard": [0, 1, 2]}

    def test_a_part_of_an_input_retries_for_itself(
        self, bulk: Callable[..., Life], wire: Wire, tmp_path: Path
    ) -> None:
        """Its rows keep their places in the whole input, and its run directory is its own."""
        questions = tmp_path / "in.jsonl"
        questions.write_text("\n".join(json.dumps(f"What is {number}?") for number in range(5)))
        parts = [
            bulk(
                questions.as_uri(),
                split=2,
                shard=shard,
                map_index=shard,
                result_path=(tmp_path / "runs").as_uri(),
            )
            for shard in range(2)
        ]
        wire.fault("error", count=1)
        assert [part.attempt().state for part in parts] == ["up_for_retry", "success"]
        assert parts[0].attempt().state == "success"
        assert [[row["index"] for row in rows_of(part.result)] for part in parts] == [[0, 2, 4], [1, 3]]
        assert (wire.paid, len(list((tmp_path / "runs").iterdir()))) == (6, 2)


class Word(pydantic.BaseModel):
    """What answers must be."""

    word: str


class TestRetries:
    """What a retry pays for, and when it comes."""

    def test_only_bad_rows_are_asked_again(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """The task fails after landing; the retry sends the failed row alone."""
        life = bulk()
        wire.fault("error", value="model overloaded", count=1)
        attempt = life.attempt()
        assert isinstance(attempt.error, AirflowException)
        assert not isinstance(attempt.error, AirflowFailException)
        assert "1 of 3 rows did not succeed (1 failed)" in attempt.message
        assert life.attempt().state == "success"
        assert (wire.paid, life.result["counts"]["succeeded"], life.result["attempt"]) == (4, 3, 2)

    def test_some_bad_rows_may_be_tolerated(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """As large a share as the author allows."""
        wire.fault("error", count=1)
        life = bulk(failure_tolerance=0.4)
        assert life.attempt().state == "success"
        assert life.result["counts"]["failed"] == 1

    def test_a_worker_that_dies_before_it_defers_pays_nothing_twice(
        self, bulk: Callable[..., Life], wire: Wire
    ) -> None:
        """The next attempt waits for what is running."""

        def die() -> None:
            raise Killed

        life = bulk()
        with pytest.raises(Killed):
            life.attempt(before_trigger=die)
        assert life.attempt().state == "success"
        assert (wire.paid, life.result["duplicates_possible"]) == (3, 0)

    @pytest.mark.parametrize(("on_deadline", "state"), [("fail", "up_for_retry"), ("land", "success")])
    def test_the_deadline_lands_what_there_is(
        self, bulk: Callable[..., Life], wire: Wire, on_deadline: str, state: str
    ) -> None:
        """And lists what goes on."""
        wire.fault("never", count=1)
        life = bulk(deadline=600, on_deadline=on_deadline, failure_tolerance=0.5)
        attempt = life.attempt()
        assert attempt.state == state
        if state == "success":
            assert life.result["going_on"]["jobs"] == 1
        else:
            assert "1 expired" in attempt.message

    def test_the_worker_looks_a_last_time(self, bulk: Callable[..., Life], wire: Wire, log: Log) -> None:
        """The triggerer was away over the deadline: what has ended meanwhile is paid for, and is no gap."""
        wire.fault("never", count=1)
        life = bulk(deadline=600, on_deadline="land", failure_tolerance=0.5)
        attempt = life.attempt(before_trigger=lambda: wire.clock.sleep(3600))
        counts = life.result["counts"]
        assert (attempt.state, counts["succeeded"], counts["expired"]) == ("success", 2, 1)
        assert (attempt.events[0]["verdict"], len(wire.looks)) == ("deadline", 3)
        assert "with 3 jobs pending. Each is looked at a last time" in log.text
        (expired,) = (row for row in rows_of(life.result) if row["status"] == "expired")
        assert expired["error"]["message"].startswith("not seen ended by the deadline")

    def test_airflows_own_limit_lands_too(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """No triggerer ran: what has ended meanwhile is paid for, so each job is looked at once."""
        wire.fault("never", count=1)
        life = bulk(on_deadline="land", failure_tolerance=0.5)
        attempt = life.attempt(instead_of_trigger={"error": "Trigger timeout"})
        counts = life.result["counts"]
        assert (attempt.state, counts["succeeded"], counts["expired"]) == ("success", 2, 1)
        assert len(wire.looks) == 3

    def test_a_rejected_key_at_the_last_look_leaves_the_jobs_to_a_clear(
        self, bulk: Callable[..., Life], wire: Wire
    ) -> None:
        """They do not count as expired: they would be paid for again, although they may have ended well."""
        wire.fault("401", operation="look")
        life = bulk()
        attempt = life.attempt(instead_of_trigger={"error": "Trigger timeout"})
        assert isinstance(attempt.error, AirflowFailException)
        assert "401" in attempt.message
        wire.no_faults()
        assert life.attempt().state == "success"
        assert wire.paid == 3

    def test_an_answer_that_does_not_fit_is_repaired(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Within the attempt, by asking again with the reason."""
        wire.fault("text", value="no JSON", count=2)
        wire.fault("text", value='{"word": "yes"}')
        life = bulk(output_type=Word, repair_attempts=2)
        attempt = life.attempt()
        assert (attempt.state, wire.paid) == ("success", 5)
        assert [row["output"] for row in rows_of(life.result)] == [{"word": "yes"}] * 3

    def test_repairs_end(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """Then the row is invalid and keeps its text."""
        wire.fault("text", value="no JSON")
        life = bulk(output_type=Word, repair_attempts=1, failure_tolerance=1.0)
        assert life.attempt().state == "success"
        assert {row["status"] for row in rows_of(life.result)} == {"invalid"}
        assert (wire.paid, rows_of(life.result)[0]["raw_output"]) == (6, "no JSON")


class TestRefusals:
    """What is refused before anything is paid."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"result_path": None},
            {"result_path": "results"},
            {"result_path": "odd://bucket/results"},
            {"requests": []},
            {"requests": [], "result_path": None, "dry_run": True},
            {"requests": "missing.jsonl"},
            {"requests": "odd://missing.jsonl"},
            {"output_type": {"type": "nonsense"}},
        ],
        ids=str,
    )
    def test_wrong_arguments(self, bulk: Callable[..., Life], wire: Wire, fields: dict[str, Any]) -> None:
        """With the reason, and for good."""
        attempt = bulk(**fields).attempt()
        assert isinstance(attempt.error, AirflowFailException)
        assert wire.requests == []

    def test_wrong_choices(self) -> None:
        """While the Dag is parsed, all at once."""
        with pytest.raises(ValueError, match=r"on_unknown: .*results_format: .*poke_interval: "):
            AsyncChatBulkOperator(
                task_id="t",
                requests=["a"],
                poke_interval=0,
                on_unknown="typo",  # type: ignore[arg-type]
                results_format="xls",  # type: ignore[arg-type]
            )

    @pytest.mark.parametrize("choices", [{"split": 0}, {"split": 2, "window": 0}], ids=str)
    def test_wrong_choices_for_mapped_tasks(self, choices: dict[str, Any]) -> None:
        """Airflow would make no task of no parts, and skip that silently."""
        with pytest.raises(ValueError, match=f"{list(choices)[-1]}: Input should be greater"):
            AsyncChatBulkOperator.sharded(task_id="t", requests="in.jsonl", **choices)

    def test_choices_by_default(self) -> None:
        """Are the same wherever they are declared."""
        declared = inspect.signature(AsyncChatBulkOperator).parameters
        fields = Policy.model_fields.items()
        assert {name: declared[name].default for name, _ in fields} == {
            name: field.default for name, field in fields
        }

    @pytest.mark.parametrize(
        ("event", "error"),
        [
            (None, "cannot be read"),
            ({"verdict": "success"}, "cannot be read"),
            ({"verdict": "refused", "message": "change the key"}, "change the key"),
            ({"verdict": "unavailable", "message": "try again"}, "try again"),
            ({"verdict": "ended", "run_uri": "odd://nowhere"}, "Could not open"),
            ({"verdict": "ended", "run_uri": "file:///nowhere"}, "Could not find the run"),
        ],
    )
    def test_an_event_is_checked_where_it_enters(
        self, bulk: Callable[..., Life], event: Any, error: str
    ) -> None:
        """Nothing counts as success by default."""
        attempt = bulk().attempt(instead_of_trigger={"event": event})
        assert attempt.state != "success"
        assert error in attempt.message

    def test_intervals_may_be_timedeltas(self, bulk: Callable[..., Life]) -> None:
        """Or seconds."""
        operator: Any = bulk(deadline=timedelta(hours=1), poke_interval=timedelta(minutes=1))._task()
        assert (operator.policy.deadline, operator.policy.poke_interval) == (3600.0, 60.0)


class TestLineage:
    """What OpenLineage is told."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, str]:
        """An input of one line, and a place for results that is not beside it."""
        questions = tmp_path / "in.jsonl"
        questions.write_text('"What?"\n')
        return questions, (tmp_path / "runs").as_uri()

    @pytest.mark.parametrize("kind", ["uri", "path", "store path", "decorated"])
    def test_a_real_run_tells_its_datasets(
        self, life: Callable[..., Life], service: str, files: tuple[Path, str], kind: str
    ) -> None:
        """Whatever the author gave, also when a process resumes that has not called the function."""
        pytest.importorskip("airflow.providers.openlineage")
        questions, runs = files
        common: dict[str, Any] = {
            "conn_id": f"{service}_default",
            "model": MODELS[service],
            "result_path": runs,
        }
        given = {"path": questions, "store path": ObjectStoragePath(questions.as_uri())}

        def build() -> Any:
            if kind == "decorated":

                def asked_for() -> str:
                    return questions.as_uri()

                made: Any = async_chat_bulk_task(asked_for, **common)
                return made().operator
            asked = given.get(kind, questions.as_uri())
            return AsyncChatBulkOperator(task_id="t", requests=asked, **common)

        bulk = life(build)
        attempt = bulk.attempt()
        assert (attempt.state, len(attempt.triggers)) == ("success", 1)
        told = bulk.task.get_openlineage_facets_on_complete(None)
        assert [(it.namespace, it.name) for it in told.inputs] == [("file", str(questions))]
        assert [(it.namespace, it.name) for it in told.outputs] == [
            ("file", bulk.result["results"].removeprefix("file://"))
        ]
        assert told.outputs[0].outputFacets["outputStatistics"].rowCount == 1
        assert told.run_facets["inference"].counts["succeeded"] == 1

    def test_a_run_that_fails_tells_them_too(self, bulk: Callable[..., Life], wire: Wire) -> None:
        """It has landed what there is. A list is no dataset."""
        pytest.importorskip("airflow.providers.openlineage")
        wire.fault("error", count=1)
        life = bulk()
        assert life.attempt().state == "up_for_retry"
        told = life.task.get_openlineage_facets_on_failure(None)
        assert (told.inputs, told.run_facets["inference"].counts["failed"]) == ([], 1)

    def test_a_store_is_named_without_who_connects(self, bulk: Callable[..., Life]) -> None:
        """As OpenLineage names buckets."""
        pytest.importorskip("airflow.providers.openlineage")
        life = bulk()
        life.attempt()
        lineage = lineage_of("s3://aws@bucket/in.jsonl", life.result)
        assert lineage is not None
        assert [(it.namespace, it.name) for it in lineage.inputs] == [("s3://bucket", "in.jsonl")]

    @pytest.mark.parametrize("prefix", ["", "file://"])
    def test_a_path_is_no_url(self, bulk: Callable[..., Life], prefix: str) -> None:
        """It may hold what ends the path of a URL."""
        pytest.importorskip("airflow.providers.openlineage")
        life = bulk()
        life.attempt()
        lineage = lineage_of(f"{prefix}/data/a#b?/in.jsonl", life.result)
        assert lineage is not None
        assert [(it.namespace, it.name) for it in lineage.inputs] == [("file", "/data/a#b?/in.jsonl")]

    def test_nothing_is_told_of_nothing(self) -> None:
        """Before anything was landed."""
        operator = AsyncChatBulkOperator(task_id="t", requests=["a"])
        assert operator.get_openlineage_facets_on_complete(None) is None
        assert operator.get_openlineage_facets_on_failure(None) is None

    def test_openlineage_may_be_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is an extra."""
        monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
        assert lineage_of(None, {"results": "file:///x"}) is None
