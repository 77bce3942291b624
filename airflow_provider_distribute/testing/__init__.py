# SPDX-License-Identifier: Apache-2.0

"""
A pytest plugin for the tests of your own DAGs: both services on your machine, no key, no bill, no wait.

Name it in the ``conftest.py`` at the root of your tests:

.. code-block:: python

    pytest_plugins = ["airflow_provider_distribute.testing"]

Then a test runs a DAG, or a hook, against the emulator, and counts what would have been paid:

.. code-block:: python

    @pytest.mark.inference_emulator(latency="1")
    def test_questions_are_answered(inference_connections):
        dag.test()
        assert inference_connections.paid == 2


    def test_a_failed_job_fails_the_task(inference_connections):
        inference_connections.fault("error", service="distribute")
        ...

=================================  ====================================================================
fixture                            gives
=================================  ====================================================================
``inference_emulator``             an :class:`InferenceEmulator` of the test's own
``inference_connections``          the same, with ``AIRFLOW_CONN_DISTRIBUTE_DEFAULT`` and
                                   ``AIRFLOW_CONN_INFERENCE_NET_DEFAULT`` pointing to it
``inference_emulator_session``     one emulator for all tests; call its ``reset()`` between them
``inference_emulator_settings``    override it to set options for all emulators
=================================  ====================================================================

Options are the fields of :class:`~airflow_provider_distribute.emulator.settings.Settings`; the marker
``inference_emulator`` sets them for one test.

PYTEST_DONT_REWRITE: your ``conftest.py`` may import this module before pytest loads it as a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_distribute.testing.emulator import InferenceEmulator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "InferenceEmulator",
    "inference_connections",
    "inference_emulator",
    "inference_emulator_session",
    "inference_emulator_settings",
]

MARKER = "inference_emulator"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{MARKER}(**settings): options of the emulator this test starts")


@pytest.fixture(scope="session")
def inference_emulator_settings() -> dict[str, Any]:
    """Options of all emulators. Override it in your ``conftest.py``; a marker's options go before."""
    return {}


@pytest.fixture
def inference_emulator(
    request: pytest.FixtureRequest, inference_emulator_settings: dict[str, Any]
) -> Iterator[InferenceEmulator]:
    """Start an emulator for this test, and stop it after."""
    marker = request.node.get_closest_marker(MARKER)
    options = {**inference_emulator_settings, **(marker.kwargs if marker else {})}
    with InferenceEmulator(**options) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def inference_emulator_session(inference_emulator_settings: dict[str, Any]) -> Iterator[InferenceEmulator]:
    """Start one emulator for all tests that ask for it. It remembers: call its ``reset()`` first."""
    with InferenceEmulator(**inference_emulator_settings) as emulator:
        yield emulator


@pytest.fixture
def inference_connections(
    inference_emulator: InferenceEmulator, monkeypatch: pytest.MonkeyPatch
) -> InferenceEmulator:
    """Point both default connections to this test's emulator, through the environment."""
    for name, value in inference_emulator.connections().items():
        monkeypatch.setenv(name, value)
    return inference_emulator
