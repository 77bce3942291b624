# SPDX-License-Identifier: Apache-2.0

"""What a bulk run tells OpenLineage: two datasets, and counts and tokens in a facet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

__all__ = ["lineage_of"]


def lineage_of(uri: str | None, manifest: dict[str, Any]) -> OperatorLineage[Any, Any] | None:
    """
    Return a run's lineage; ``None`` when nothing was landed or OpenLineage is not installed.

    :param uri: Of the input; ``None``: it is no file, and no dataset.
    :param manifest: The run's manifest.
    """
    if "results" not in manifest:
        return None
    try:
        import attr
        from airflow.providers.common.compat.openlineage.facet import (
            Dataset,
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
            RunFacet,
        )
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None

    @attr.define
    class InferenceRunFacet(RunFacet):
        """Rows by status, tokens and the estimated cost of a bulk run."""

        service: str
        rows: int
        counts: dict[str, int]
        promptTokens: int  # noqa: N815  OpenLineage's facets are written so
        completionTokens: int  # noqa: N815
        cost: float | None

    facet = InferenceRunFacet(
        service=manifest["service"],
        rows=manifest["rows"],
        counts=manifest["counts"],
        promptTokens=manifest["tokens"]["prompt"],
        completionTokens=manifest["tokens"]["completion"],
        cost=manifest["cost"],
    )
    statistics = OutputStatisticsOutputDatasetFacet(rowCount=manifest["rows"])
    results = OutputDataset(*_dataset(manifest["results"]), outputFacets={"outputStatistics": statistics})
    return OperatorLineage(
        inputs=[] if uri is None else [Dataset(*_dataset(uri))],
        outputs=[results],
        run_facets={"inference": facet},
    )


def _dataset(uri: str) -> tuple[str, str]:
    """Return namespace and name, by OpenLineage's naming of file systems and object stores."""
    # Not as a URL: a path may hold "#" and "?".
    scheme, _, rest = (uri if "://" in uri else f"file://{uri}").partition("://")
    if scheme == "file":
        return "file", rest
    host, _, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}", path.lstrip("/")
