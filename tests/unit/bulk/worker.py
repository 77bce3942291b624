# SPDX-License-Identifier: Apache-2.0

"""
A worker or a triggerer as a process of its own, so that it can be killed in earnest.

``python -m tests.unit.bulk.worker send|collect <directory> <base url> <rows> <seconds of the first backoff>``
"""

from __future__ import annotations

import asyncio
import sys
import time

from upath import UPath

from airflow_provider_distribute.bulk import submission
from airflow_provider_distribute.bulk.collection import Collection
from airflow_provider_distribute.bulk.inputs import source_of
from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.bulk.run import Plan, Run
from airflow_provider_distribute.bulk.submission import Submission
from airflow_provider_distribute.client import AsyncClient
from airflow_provider_distribute.ledger.directory import Directory
from airflow_provider_distribute.pacing import Backoff
from airflow_provider_distribute.waiting.pool import shared_pool
from tests.unit.bulk.world import OWNER, prompts
from tests.unit.contracts import DISTRIBUTE

WINDOW = 16


def plan_for(url: str) -> Plan:
    """Return what both processes and the test agree on."""
    settings = DISTRIBUTE.settings(
        api_key="emulator-key", base_url=url, model="Llama-3.1 8B", airflow_metadata=False
    )
    return Plan(settings, OWNER, policy=Policy(window=WINDOW))


async def send(run: Run, budget: object) -> None:
    """Submit what is missing."""
    async with await AsyncClient.open(run.plan.settings) as client:
        await Submission(run, client, budget, deadline=time.time() + 120).run()  # type: ignore[arg-type]


async def collect(directory: Directory, plan: Plan) -> None:
    """Wait for what is running."""
    collection = Collection(directory, plan.settings)
    await asyncio.to_thread(collection.read)
    await collection.run(shared_pool(plan.settings), deadline=time.time() + 120, poke_interval=1.0)


def main(mode: str, path: str, url: str, rows: int, backoff: float) -> None:
    """Do one of both."""
    submission.BACKOFF = Backoff(base=backoff, cap=60 * backoff)
    directory, plan = Directory(UPath(path)), plan_for(url)
    if mode == "collect":
        asyncio.run(collect(directory, plan))
        return
    run = Run(directory, plan)
    staged = run.take_up(source_of(prompts(rows), open_path=UPath), now=time.time())
    asyncio.run(send(run, run.budget(staged.costs)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
