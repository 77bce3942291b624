# SPDX-License-Identifier: Apache-2.0

"""Nothing a bulk run writes down holds a key; prompts stay in the author's file and the run's directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.integration.bulk import results_of, write_questions
from tests.integration.emulator import PLANTED_KEY

if TYPE_CHECKING:
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

PLANTED_PROMPT = "planted-bulk-prompt-71fe0b92a4"
ECHO = f"This key will not do: {PLANTED_KEY} (Authorization: Bearer {PLANTED_KEY})"
SERVICES = ("distribute", "inference_net")
#: How the rows of a run that succeeds end, each for another reason.
STATUSES = {"answered": "succeeded", "job_fails": "failed", "refused": "failed", "broken": "unknown"}
ROWS = "rows"
DENIED = ("submit_denied", "look_denied")
FAULTS: dict[str, dict[str, Any]] = {
    "job_fails": {"kind": "error", "value": ECHO},
    "refused": {"kind": "400", "operation": "submit", "value": ECHO},
    "broken": {"kind": "500", "operation": "submit", "value": ECHO},
    "answered": {"kind": "500", "operation": "look", "value": ECHO, "count": 6},
    "submit_denied": {"kind": "401", "operation": "submit", "value": ECHO},
    "look_denied": {"kind": "401", "operation": "look", "value": ECHO},
}

#: Each task has a connection of its own: a rejected key ends every wait on the connection it belongs to.
DAG = f"""
from airflow.sdk import DAG

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator

with DAG("bulk_secrets", schedule=None, params={{"questions": {{}}, "result_path": ""}}):
    for service in {SERVICES}:
        for case in {(ROWS, *DENIED)}:
            AsyncChatBulkOperator(
                task_id=f"{{service}}_{{case}}",
                conn_id=f"bulk_secret_{{service}}_{{case}}",
                requests="{{{{ params.questions['" + case + "'] }}}}",
                result_path="{{{{ params.result_path }}}}",
                failure_tolerance=1,
                poke_interval=1,
            )
"""


def test_no_key_is_left_behind_and_prompts_only_where_they_belong(
    airflow: AirflowUnderTest, emulator: EmulatorProcess
) -> None:
    """
    Runs that end well and badly leave a key nowhere, and prompts in no table, no log and no trigger.

    The service's own words repeat the key; what all other tests left so far is searched as well.
    """
    for service in SERVICES:
        for case in (ROWS, *DENIED):
            emulator.connect_as(f"bulk_secret_{service}_{case}", airflow, service)
    for case, fault in FAULTS.items():
        emulator.fault(match=f"{PLANTED_PROMPT} {case}", **fault)
    asked = {ROWS: tuple(STATUSES), **{case: (case,) for case in DENIED}}
    questions = {
        name: write_questions(airflow, f"secret_{name}", [f"{PLANTED_PROMPT} {case}" for case in cases])
        for name, cases in asked.items()
    }
    result_path = (results_of(airflow) / "secrets").as_uri()
    conf = {"questions": questions, "result_path": result_path}
    run = airflow.trigger(airflow.add_dag("bulk_secrets", DAG), conf)
    for service in SERVICES:
        airflow.wait_for_task(run, f"{service}_{ROWS}", "deferred")
    assert "trigger" in airflow.tables_with(result_path)
    assert airflow.tables_with(PLANTED_KEY) == set()
    assert airflow.tables_with(PLANTED_PROMPT) == set()

    emulator.finish()
    expected = {f"{service}_{case}": "failed" for service in SERVICES for case in DENIED}
    expected |= {f"{service}_{ROWS}": "success" for service in SERVICES}
    assert airflow.wait_for_run(run).tasks == expected

    for service in SERVICES:
        counts = airflow.xcom(run, f"{service}_{ROWS}")["counts"]
        assert {status: count for status, count in counts.items() if count} == {
            status: list(STATUSES.values()).count(status) for status in STATUSES.values()
        }
    assert "This key will not do: ***" in airflow.task_log(run, "distribute_look_denied")
    assert airflow.tables_with(PLANTED_KEY) == set()
    assert airflow.tables_with(PLANTED_PROMPT) == set()
    assert airflow.files_with(PLANTED_KEY) == set()
    assert {path.split("/")[0] for path in airflow.files_with(PLANTED_PROMPT)} == {"questions", "results"}
