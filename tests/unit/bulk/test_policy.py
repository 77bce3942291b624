# SPDX-License-Identifier: Apache-2.0

"""What an author chooses is checked as a whole."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_distribute.bulk.policy import Policy


def test_what_is_chosen_is_kept() -> None:
    """By the names of the operator's arguments."""
    policy = Policy.of(on_deadline="land", split=3, shard=2, max_cost=1.5)
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
        {"repair_attempts": "once"},
        {"deadline": 0},
        {"deadline": float("inf")},
        {"deadline": 1e12},
        {"deadline": timedelta(0)},
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
    """While the Dag is parsed, by name."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        Policy.of(**fields)


def test_a_shard_is_one_of_split() -> None:
    """The last one is one less than split."""
    with pytest.raises(ValueError, match="shard 3 is not one of 0 to 2"):
        Policy.of(split=3, shard=3)


def test_everything_wrong_is_said_at_once() -> None:
    """Nobody corrects one argument after the other."""
    with pytest.raises(ValueError, match=r"like this: .*on_unknown: .*'leave'; .*window: ") as raised:
        Policy.of(window=0, on_unknown="shrug")
    assert raised.value.__suppress_context__


def test_an_unknown_format_is_refused() -> None:
    """With those there are."""
    with pytest.raises(ValueError, match=r"results_format: .*'jsonl', 'parquet' or 'openai_batch'"):
        Policy.of(results_format="xml")


def test_numbers_may_come_as_text_and_durations_as_such() -> None:
    """They are read once, here."""
    policy = Policy.of(repair_attempts="1", deadline=timedelta(hours=1), poke_interval=timedelta(minutes=1))
    assert (policy.repair_attempts, policy.deadline, policy.poke_interval) == (1, 3600.0, 60.0)


def test_several_parts_need_a_shard() -> None:
    """Or the others would never be asked."""
    with pytest.raises(ValueError, match=r"AsyncChatBulkOperator\.sharded makes a task for each"):
        Policy.of(split=2)


@pytest.mark.parametrize(("max_cost", "share"), [(None, None), (6.0, 2.0)])
def test_the_limit_is_for_all_parts_together(max_cost: float | None, share: float | None) -> None:
    """Each may spend an equal share."""
    assert Policy.of(max_cost=max_cost, split=3, shard=0).share_of_max_cost == share
