# SPDX-License-Identifier: Apache-2.0

"""Nothing that Airflow writes down holds a key, and prompts stay where their author put them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.integration.emulator import PLANTED_KEY

if TYPE_CHECKING:
    from tests.integration.emulator import EmulatorProcess
    from tests.integration.harness import AirflowUnderTest

PLANTED_PROMPT = "planted-prompt-c35a81d206"
ECHO = f"This key will not do: {PLANTED_KEY} (Authorization: Bearer {PLANTED_KEY})"
FAULTS: dict[str, dict[str, Any]] = {
    "job_fails": {"kind": "error", "value": "the model is overloaded"},
    "submit_denied": {"kind": "401", "operation": "submit", "value": ECHO},
    "submit_broken": {"kind": "500", "operation": "submit", "value": ECHO},
    "submit_hangs": {"kind": "hang", "operation": "submit", "seconds": 60},
    "look_denied": {"kind": "401", "operation": "look", "value": ECHO},
    "look_broken": {"kind": "500", "operation": "look", "value": ECHO},
    "look_hangs": {"kind": "hang", "operation": "look", "seconds": 60},
}
ANSWERED = "answered"
SERVICES = ("distribute", "inference_net")

#: Each task has a connection of its own: a rejected key ends every wait on the connection it belongs to.
DAG = f"""
from airflow.sdk import DAG

from airflow_provider_distribute.operators.chat import AsyncChatOperator

with DAG("chat_secrets", schedule=None):
    for service in {SERVICES}:
        for case in {(ANSWERED, *FAULTS)}:
            AsyncChatOperator(
                task_id=f"{{service}}_{{case}}",
                conn_id=f"secret_{{service}}_{{case}}",
                system_prompt="{PLANTED_PROMPT}",
                prompt=f"{PLANTED_PROMPT} {{case}}",
                metadata={{"planted": "{PLANTED_PROMPT}"}},
                poke_interval=1,
                timeout=600 if case == "{ANSWERED}" else 15,
            )
"""
#: Where Airflow keeps the DAG's source, what its author wrote into fields, and the results he asked for.
THE_AUTHORS = {"dag_code", "serialized_dag", "rendered_task_instance_fields", "xcom"}


def test_no_key_and_no_prompt_is_left_behind(airflow: AirflowUnderTest, emulator: EmulatorProcess) -> None:
    """
    Tasks that end well and in every bad way leave neither in logs, triggers, events, states or tables.

    The service's own words repeat the key; the logs of all other tests so far are searched as well.
    """
    for service in SERVICES:
        for case in (ANSWERED, *FAULTS):
            emulator.connect_as(f"secret_{service}_{case}", airflow, service, timeout=3)
    for case, fault in FAULTS.items():
        emulator.fault(match=f"{PLANTED_PROMPT} {case}", **fault)
    run = airflow.trigger(airflow.add_dag("chat_secrets", DAG))
    for service in SERVICES:
        airflow.wait_for_task(run, f"{service}_{ANSWERED}", "deferred")
    # Jobs of the other tasks may have been given up by now, and their triggers with them.
    waited_for = {job["request"]["metadata"]["airflow_task_id"]: job["id"] for job in emulator.jobs()}
    assert airflow.tables_with(waited_for[f"distribute_{ANSWERED}"]) >= {"trigger", "task_instance"}
    assert airflow.tables_with(PLANTED_KEY) == set()
    assert airflow.tables_with(PLANTED_PROMPT) - THE_AUTHORS == set()

    emulator.finish()
    expected = {f"{service}_{case}": "failed" for service in SERVICES for case in FAULTS}
    expected |= {f"{service}_{ANSWERED}": "success" for service in SERVICES}
    assert airflow.wait_for_run(run).tasks == expected

    assert "This key will not do: ***" in airflow.task_log(run, "distribute_look_denied")
    assert airflow.tables_with(PLANTED_PROMPT) == THE_AUTHORS
    assert airflow.tables_with(PLANTED_KEY) == set()
    assert airflow.files_with(PLANTED_PROMPT) == {"dags/chat_secrets.py"}
    assert airflow.files_with(PLANTED_KEY) == set()
