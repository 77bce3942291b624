# SPDX-License-Identifier: Apache-2.0

"""
Schemathesis against the contracts' OpenAPI files: what they allow is accepted, what they forbid is
refused, and every answer has the shape they give.

Where the contract's prose is stricter than its file, the file is narrowed first; each place says why.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import schemathesis

from airflow_provider_distribute.testing import InferenceEmulator

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACTS = Path(__file__).parent.parent / "contracts"
OPERATIONS = {
    "distribute": ["asyncChatCreate", "asyncChatResult"],
    "inference_net": ["slowChatCompletions", "asyncChatCompletions", "getGeneration", "listModels"],
}
# Spelt as in the files: schemathesis takes the header out by its name to see whether it is looked at.
KEYS = {
    "distribute": {"authorization": "emulator-key"},
    "inference_net": {"Authorization": "Bearer emulator-key"},
}
EXAMPLES = 12


def contract(service: str) -> dict[str, Any]:
    """Read a contract's file."""
    loaded = schemathesis.openapi.from_path(CONTRACTS / f"{service}.openapi.yaml").raw_schema
    return dict(loaded)


def distribute() -> schemathesis.BaseSchema:
    """The file, with requests closed and ``n`` of 1 or 2, as the prose says."""
    file = contract("distribute")
    schemas = file["components"]["schemas"]
    base, ceiling = schemas["ChatRequestBase"], schemas["ChatCreateRequest"]["allOf"][1]
    fields = {**base["properties"], **ceiling["properties"], "n": {"type": "number", "enum": [1, 2]}}
    schemas["ChatCreateRequest"] = {**base, "properties": fields, "additionalProperties": False}
    return schemathesis.openapi.from_dict(file).include(operation_id=OPERATIONS["distribute"])


def inference_net() -> schemathesis.BaseSchema:
    """The file as it is."""
    return schemathesis.openapi.from_dict(contract("inference_net")).include(
        operation_id=OPERATIONS["inference_net"]
    )


@pytest.fixture(scope="module")
def emulated() -> Iterator[InferenceEmulator]:
    """One emulator for all examples."""
    with InferenceEmulator() as emulator:
        yield emulator


limited = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@distribute().parametrize()
@limited
def test_distribute_keeps_its_contract(case: schemathesis.Case[Any], emulated: InferenceEmulator) -> None:
    """Every check schemathesis has, on generated requests, valid and invalid."""
    case.call_and_validate(base_url=emulated.base_url("distribute"), headers=KEYS["distribute"])


@inference_net().parametrize()
@limited
def test_inference_net_keeps_its_contract(case: schemathesis.Case[Any], emulated: InferenceEmulator) -> None:
    """Every check schemathesis has, on generated requests, valid and invalid."""
    case.call_and_validate(base_url=emulated.base_url("inference_net"), headers=KEYS["inference_net"])
