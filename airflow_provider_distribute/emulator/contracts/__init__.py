# SPDX-License-Identifier: Apache-2.0

"""The services' contracts, one module each. A further service is a module and a line in this table."""

from __future__ import annotations

from airflow_provider_distribute.emulator.contracts.base import Contract
from airflow_provider_distribute.emulator.contracts.distribute import Distribute
from airflow_provider_distribute.emulator.contracts.inference_net import InferenceNet

__all__ = ["CONTRACTS", "Contract"]

_ALL: tuple[Contract, ...] = (Distribute(), InferenceNet())
CONTRACTS = {contract.name: contract for contract in _ALL}
