# SPDX-License-Identifier: Apache-2.0

"""Fifty questions to each service, submitted by a worker and waited for by the triggerer."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_distribute.operators.chat import SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor

SEASONS = ("spring", "summer", "autumn", "winter", "the rainy season")
CITIES = ("Accra", "Berlin", "Cairo", "Dublin", "Hanoi", "Lima", "Nairobi", "Oslo", "Quito", "Seoul")

QUESTIONS = [f"What is there to do in {city} in {season}?" for city in CITIES for season in SEASONS]

with DAG("distribute_demo", schedule=None, tags=["demo"]):
    for service in ("distribute", "inference_net"):
        submit = SubmitAsyncChatOperator(
            task_id=f"submit_{service}",
            conn_id=f"{service}_default",
            requests=QUESTIONS,
        )
        AsyncChatSensor(
            task_id=f"wait_{service}",
            conn_id=f"{service}_default",
            job_id=submit.output,
            poke_interval=4,
        )
