# SPDX-License-Identifier: Apache-2.0

"""What a bulk run tells monitoring: metrics with few tags, and spans without contents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.airflow.conftest import Metrics
    from tests.airflow.supervisor import Life
    from tests.airflow.wire import Wire


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans that have ended."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("operators.bulk", "bulk.attempt"):
        tracer = provider.get_tracer("test")
        monkeypatch.setattr(f"airflow_provider_distribute.{module}._tracer", tracer)
    return exporter


class TestMetrics:
    """Counters, by service and status."""

    def test_a_run_is_counted(self, bulk: Callable[..., Life], metrics: Metrics) -> None:
        """What was sent, looked at, landed and paid."""
        life = bulk()
        life.attempt()
        looked = metrics.counts.pop("distribute.pool.looked")
        assert looked >= 3
        assert metrics.counts == {
            "distribute.bulk.accepted": 3,
            "distribute.bulk.landed.succeeded": 3,
            "distribute.bulk.prompt_tokens": life.result["tokens"]["prompt"],
            "distribute.bulk.completion_tokens": life.result["tokens"]["completion"],
            "distribute.bulk.cost_microdollars": round(1e6 * life.result["cost"]),
        }

    def test_there_are_few_tags(self, bulk: Callable[..., Life], metrics: Metrics, service: str) -> None:
        """Each combination is a series that monitoring keeps."""
        bulk().attempt()
        assert {frozenset(tags) for tags in metrics.tags} == {
            frozenset({"service"}),
            frozenset({"service", "status"}),
        }
        assert {tags["service"] for tags in metrics.tags} == {service}

    def test_a_clear_that_changes_nothing_counts_nothing(
        self, bulk: Callable[..., Life], metrics: Metrics
    ) -> None:
        """Rows, tokens and cost were counted when they were landed first."""
        life = bulk()
        life.attempt()
        before = dict(metrics.counts)
        life.attempt()
        assert metrics.counts == before

    def test_a_retry_counts_what_it_changes(
        self, bulk: Callable[..., Life], metrics: Metrics, wire: Wire
    ) -> None:
        """The row that it asked again, and what that took."""
        wire.fault("error", count=1)
        life = bulk()
        life.attempt()
        assert metrics.counts["distribute.bulk.landed.failed"] == 1
        life.attempt()
        assert metrics.counts["distribute.bulk.landed.succeeded"] == 3
        assert metrics.counts["distribute.bulk.landed.failed"] == 1
        assert metrics.counts["distribute.bulk.completion_tokens"] == life.result["tokens"]["completion"]

    def test_another_input_is_counted_for_itself(self, bulk: Callable[..., Life], metrics: Metrics) -> None:
        """Its rows are others, though as many ended as well before."""
        bulk().attempt()
        bulk(("Other 1?", "Other 2?"), on_input_change="restart").attempt()
        assert metrics.counts["distribute.bulk.landed.succeeded"] == 5

    def test_trouble_is_counted(self, bulk: Callable[..., Life], metrics: Metrics, wire: Wire) -> None:
        """Requests that were throttled, refused or not answered, and looks that were throttled."""
        wire.fault("429", operation="submit", count=1)
        wire.fault("400", operation="submit", count=1)
        wire.fault("500", operation="submit", count=1)
        wire.fault("429", operation="look", count=1)
        bulk(failure_tolerance=1.0).attempt()
        for name in ("bulk.throttled", "bulk.refused", "bulk.unknown", "pool.throttled"):
            assert metrics.counts[f"distribute.{name}"] == 1, name

    def test_looks_of_a_worker_that_waits_are_counted(
        self, bulk: Callable[..., Life], metrics: Metrics, wire: Wire
    ) -> None:
        """As those of a triggerer are."""
        bulk(deferrable=False).attempt()
        assert metrics.counts["distribute.pool.looked"] == len(wire.looks)


class TestSpans:
    """One for each phase."""

    def test_each_phase_has_one(self, bulk: Callable[..., Life], spans: InMemorySpanExporter) -> None:
        """With the number of rows, and nothing of what was asked."""
        bulk().attempt()
        ended = spans.get_finished_spans()
        assert [span.name for span in ended] == ["bulk.check", "bulk.send", "bulk.land"]
        assert [dict(span.attributes or {}) for span in ended] == [{}, {"rows": 3}, {"rows": 3}]

    def test_nothing_is_sent_without_a_span(
        self, bulk: Callable[..., Life], spans: InMemorySpanExporter
    ) -> None:
        """And there is none where nothing is sent."""
        life = bulk()
        life.attempt()
        spans.clear()
        life.attempt()
        assert [span.name for span in spans.get_finished_spans()] == ["bulk.check", "bulk.land"]
