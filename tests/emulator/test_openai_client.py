# SPDX-License-Identifier: Apache-2.0

"""The real ``openai`` client, which we did not write, against the emulated inference.net."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_distribute.testing import InferenceEmulator


class City(BaseModel):
    """What the model is asked to fill."""

    name: str
    inhabitants: int


@pytest.fixture
def slow(emulator: InferenceEmulator) -> Iterator[openai.OpenAI]:
    """The client as the vendor's samples set it up."""
    base = f"{emulator.base_url('inference_net')}/v1/slow"
    with openai.OpenAI(api_key="emulator-key", base_url=base, max_retries=0) as client:
        yield client


def generation(emulator: InferenceEmulator, job_id: str) -> ChatCompletion:
    """Read a generation as the vendor's samples do, and let the client's own types check its response."""
    url = f"{emulator.base_url('inference_net')}/v1/generation/{job_id}"
    body = httpx.get(url, headers={"Authorization": "Bearer emulator-key"}).json()
    assert body["state"] == "Success"
    return ChatCompletion.model_validate(body["response"])


def test_an_acknowledgement_has_no_choices_and_the_generation_has(
    slow: openai.OpenAI, emulator: InferenceEmulator
) -> None:
    """The acknowledgement has OpenAI's shape, so the client takes it for a completion."""
    acknowledged = slow.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Say hello."}], metadata={"custom_id": "row-1"}
    )
    assert acknowledged.choices == []
    completion = generation(emulator, acknowledged.id)
    assert (completion.choices[0].message.content or "").endswith("Say hello.")
    assert completion.usage is not None
    assert completion.usage.total_tokens == 5


def test_structured_output(slow: openai.OpenAI, emulator: InferenceEmulator) -> None:
    """The schema the client makes of a pydantic model is followed."""
    acknowledged = slow.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Where is the tower?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "strict": True, "schema": City.model_json_schema()},
        },
    )
    City.model_validate_json(generation(emulator, acknowledged.id).choices[0].message.content or "")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("401", openai.AuthenticationError),
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("reset", openai.APIConnectionError),
    ],
)
def test_errors_are_what_the_client_takes_them_for(
    slow: openai.OpenAI, emulator: InferenceEmulator, kind: str, error: type[openai.OpenAIError]
) -> None:
    """Its own classes, by status."""
    emulator.fault(kind)
    with pytest.raises(error):
        slow.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])


def test_the_catalogue(emulator: InferenceEmulator) -> None:
    """The client's list of models is the emulator's."""
    base = f"{emulator.base_url('inference_net')}/v1"
    with openai.OpenAI(api_key="emulator-key", base_url=base) as client:
        assert "llama-3.3-70b-instruct" in [model.id for model in client.models.list()]
