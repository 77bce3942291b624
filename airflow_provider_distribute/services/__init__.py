# SPDX-License-Identifier: Apache-2.0

"""The services this package speaks to, by connection type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_distribute.services.base import Call, Service
from airflow_provider_distribute.services.distribute import Distribute
from airflow_provider_distribute.services.inference_net import InferenceNet

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SERVICES", "Call", "Service"]

SERVICES: Mapping[str, Service] = {service.name: service for service in (Distribute(), InferenceNet())}
