# SPDX-License-Identifier: Apache-2.0

"""
The hook alone, inside a task of your own: submit, do something else, then look.

The task occupies a worker while it waits, which is fine for jobs that end within minutes. To wait for hours,
return the job ids and let an :class:`~airflow_provider_distribute.sensors.chat.AsyncChatSensor` wait.
"""

from __future__ import annotations

from airflow.sdk import dag, task

from airflow_provider_distribute.hooks.distribute import DistributeHook


@dag(schedule=None, catchup=False, tags=["example", "llm"])
def example_hook_in_task() -> None:
    @task
    def translate(words: list[str]) -> dict[str, str | None]:
        hook = DistributeHook()
        job_ids = [hook.submit(f"Translate to French, one word: {word}") for word in words]
        jobs = hook.wait(job_ids, timeout=1800, poke_interval=5)
        return {word: job.content for word, job in zip(words, jobs, strict=True)}

    translate(["bread", "butter"])


example_hook_in_task()
