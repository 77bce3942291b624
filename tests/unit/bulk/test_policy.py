# SPDX-License-Identifier: Apache-2.0

"""What an author chooses is checked as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_distribute.bulk.policy import Policy
from airflow_provider_distribute.exceptions import InvalidRequest


def chosen(**fields: Any) -> Policy:
    return Policy.of(SimpleNamespace(**{**Policy().model_dump(), **fields}))


def test_what_is_chosen_is_kept() -> None:
    """By the names of the operator's arguments."""
    policy = chosen(on_deadline="land", split=3, shard=2, max_cost=1.5)
    assert (policy.on_deadline, policy.split, policy.shard, policy.max_cost) == ("land", 3, 2, 1.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"on_deadline": "shrug"},
        {"on_unknown": "shrug"},
        {"on_input_change": "shrug"},
        {"failure_tolerance": 1.1},
        {"failure_tolerance": float("nan")},
        {"repair_attempts": -1},
        {"deadline": 0},
        {"deadline": float("inf")},
        {"deadline": 1e12},
        {"poke_interval": float("inf")},
        {"poke_interval": float("nan")},
        {"max_cost": 0},
        {"max_cost": float("nan")},
        {"window": 0},
        {"split": 0},
        {"shard": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    """Before anything is sent, by name."""
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        chosen(**fields)


def test_a_shard_is_one_of_split() -> None:
    """The last one is one less than split."""
    with pytest.raises(InvalidRequest, match="shard 3 is not one of 0 to 2"):
        chosen(split=3, shard=3)


def test_everything_wrong_is_said_at_once() -> None:
    """Nobody corrects one argument after the other."""
    with pytest.raises(InvalidRequest) as raised:
        chosen(window=0, on_unknown="shrug")
    assert len(raised.value.problems) == 2
