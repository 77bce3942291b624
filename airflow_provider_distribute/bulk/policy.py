# SPDX-License-Identifier: Apache-2.0

"""What an author chose about a run, beside what is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from airflow_provider_distribute.bulk.formats import FormatName
from airflow_provider_distribute.models import (
    DEFAULT_POKE_INTERVAL,
    DEFAULT_TIMEOUT,
    Seconds,
    Value,
    problems_in,
)

__all__ = ["WINDOW", "OnDeadline", "OnInputChange", "OnUnknown", "Policy"]

OnDeadline = Literal["fail", "land"]
OnUnknown = Literal["resubmit", "fail", "leave"]
OnInputChange = Literal["fail", "restart"]

#: Rows that may be intended and not recorded, unless an author says otherwise.
WINDOW = 64


class Policy(Value):
    """
    Choices and bounds, checked all at once.

    :param repair_attempts: How often invalid rows are asked again within an attempt.
    :param failure_tolerance: The share of rows that may end other than ``succeeded``.
    :param deadline: Seconds from the start of an attempt.
    :param on_deadline: Whether the task fails when the deadline leaves rows without an answer.
    :param on_unknown: What to do with requests that were sent and not answered.
    :param on_input_change: What to do when a run is recorded for another input.
    :param max_cost: US dollars that the estimate for the whole input must not pass; ``None``: no limit.
    :param results_format: How results are written.
    :param split: Into how many parts the input is split.
    :param shard: Which of them this run takes, from 0; needed when there are several.
    :param window: Rows that may be intended and not recorded.
    :param poke_interval: Seconds between looks of a fixed schedule; jobs are found as soon on average.
    """

    repair_attempts: int = Field(0, ge=0)
    failure_tolerance: float = Field(0.0, ge=0, le=1)
    deadline: Seconds = DEFAULT_TIMEOUT
    on_deadline: OnDeadline = "fail"
    on_unknown: OnUnknown = "resubmit"
    on_input_change: OnInputChange = "fail"
    max_cost: float | None = Field(None, gt=0, allow_inf_nan=False)
    results_format: FormatName = "jsonl"
    split: int = Field(1, ge=1)
    shard: int | None = Field(None, ge=0)
    window: int = Field(WINDOW, ge=1)
    poke_interval: Seconds = DEFAULT_POKE_INTERVAL

    @model_validator(mode="after")
    def _shard_is_one_of_split(self) -> Policy:
        if self.shard is None and self.split > 1:
            raise ValueError(
                f"split is {self.split}, and shard does not say which part this task takes: "
                "AsyncChatBulkOperator.sharded makes a task for each"
            )
        if (self.shard or 0) >= self.split:
            raise ValueError(f"shard {self.shard} is not one of 0 to {self.split - 1}: split is {self.split}")
        return self

    @property
    def share_of_max_cost(self) -> float | None:
        """US dollars that the estimate for this part of the input must not pass; ``None``: no limit."""
        return None if self.max_cost is None else self.max_cost / self.split

    @classmethod
    def of(cls, **choices: Any) -> Policy:
        """
        Check what an author chose, while the Dag is parsed and nothing is paid.

        :raises ValueError: naming every choice that is not allowed.
        """
        try:
            return cls(**choices)
        except ValidationError as error:
            raise ValueError(f"No bulk run can be done like this: {'; '.join(problems_in(error))}") from None
