# SPDX-License-Identifier: Apache-2.0

"""What an author chose about a run, beside what is asked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from airflow_provider_distribute.exceptions import InvalidRequest
from airflow_provider_distribute.models import Value, problems_in

__all__ = ["Policy"]

#: The longest duration an author can ask for, in seconds. Later instants do not fit into Airflow's tables.
_LONGEST = 366 * 86400.0


class Policy(Value):
    """
    Choices and bounds, checked all at once.

    :param repair_attempts: How often invalid rows are asked again within an attempt.
    :param failure_tolerance: The share of rows that may end other than ``succeeded``.
    :param deadline: Seconds from the start of an attempt.
    :param on_deadline: Whether the task fails when the deadline leaves rows without an answer.
    :param on_unknown: What to do with requests that were sent and not answered.
    :param on_input_change: What to do when a run is recorded for another input.
    :param max_cost: US dollars that the estimate must not pass; ``None``: no limit.
    :param split: Into how many parts the input is split.
    :param shard: Which of them this run takes, from 0.
    :param window: Rows that may be intended and not recorded.
    :param poke_interval: Seconds of the fixed schedule that waiting is at least as quick as.
    """

    repair_attempts: int = Field(0, ge=0)
    failure_tolerance: float = Field(0.0, ge=0, le=1)
    deadline: float = Field(_LONGEST, gt=0, le=_LONGEST)
    on_deadline: Literal["fail", "land"] = "fail"
    on_unknown: Literal["resubmit", "fail", "leave"] = "resubmit"
    on_input_change: Literal["fail", "restart"] = "fail"
    max_cost: float | None = Field(None, gt=0, allow_inf_nan=False)
    split: int = Field(1, ge=1)
    shard: int = Field(0, ge=0)
    window: int = Field(64, ge=1)
    poke_interval: float = Field(30.0, gt=0, le=_LONGEST)

    @model_validator(mode="after")
    def _shard_is_one_of_split(self) -> Policy:
        if self.shard >= self.split:
            raise ValueError(f"shard {self.shard} is not one of 0 to {self.split - 1}: split is {self.split}")
        return self

    @classmethod
    def of(cls, author: object) -> Policy:
        """
        Read the choices from whatever has them as attributes.

        :raises InvalidRequest: naming every one that is not allowed.
        """
        try:
            return cls(**{name: getattr(author, name) for name in cls.model_fields})
        except ValidationError as error:
            raise InvalidRequest(problems_in(error), where="The run") from None
