# SPDX-License-Identifier: Apache-2.0

"""What Airflow reads to know this provider. Every Airflow process does, so it imports nothing."""

from __future__ import annotations

from typing import Any

__all__ = ["FORMS", "get_provider_info"]


def _field(label: str, description: str, type_: str | list[str], **schema: Any) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": type_, **schema}}


_OPTIONAL_TEXT = ["string", "null"]
_OPTIONAL_NUMBER = ["number", "null"]

_COMMON_FIELDS = {
    "model": _field("Model", "Model for requests that name none.", _OPTIONAL_TEXT, default=None),
    "timeout": _field(
        "Timeout (s)",
        "Seconds one exchange may take once connected.",
        "number",
        default=60,
        exclusiveMinimum=0,
        maximum=3600,
    ),
    "connect_timeout": _field(
        "Connect timeout (s)",
        "Seconds to get connected.",
        "number",
        default=10,
        exclusiveMinimum=0,
        maximum=3600,
    ),
    "requests_per_second": _field(
        "Requests per second",
        "Ceiling for requests from one process. Empty: as fast as the service takes them.",
        _OPTIONAL_NUMBER,
        default=None,
        exclusiveMinimum=0,
        maximum=10_000,
    ),
    "max_connections": _field(
        "Connections",
        "Connections open at once from one process.",
        "integer",
        default=32,
        minimum=1,
        maximum=1000,
    ),
    "dashboard_url": _field(
        "Dashboard URL",
        "Where people see their jobs; linked from the task.",
        _OPTIONAL_TEXT,
        default=None,
        format="url",
    ),
    "allow_undocumented_params": _field(
        "Allow undocumented params",
        "Send body fields and values that the service does not document.",
        "boolean",
        default=False,
    ),
    "airflow_metadata": _field(
        "Send Airflow metadata",
        "Send dag, run, task, map index and input index with each request.",
        "boolean",
        default=True,
    ),
    "prices": _field(
        "Prices (JSON)",
        'What models cost you, in US dollars per million tokens in and out: {"model": [0.1, 0.16]}.',
        _OPTIONAL_TEXT,
        default=None,
    ),
}


def _form(base_url: str, **fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "ui-field-behaviour": {
            "hidden-fields": ["login", "port", "schema"],
            "relabeling": {"host": "Base URL", "password": "API key"},
            "placeholders": {"host": base_url},
        },
        "conn-fields": {**_COMMON_FIELDS, **fields},
    }


#: Connection forms by connection type.
FORMS: dict[str, dict[str, Any]] = {
    "distribute": _form(
        "https://api.distribute.ai",
        not_found_grace=_field(
            "Not-found grace (s)",
            "Seconds for which a 404 on a look means that the job is not visible yet; then it is lost.",
            "number",
            default=30,
            minimum=0,
        ),
        auth_prefix=_field(
            "Authorization prefix",
            "What stands before the key in the header, such as 'Bearer '.",
            "string",
            default="",
        ),
    ),
    "inference_net": _form(
        "https://api.inference.net",
        async_prefix=_field(
            "Async prefix", "Path segment of submissions.", "string", default="slow", enum=["slow", "async"]
        ),
    ),
}


def _connection_type(name: str, hook_class: str) -> dict[str, Any]:
    return {
        "connection-type": name,
        "hook-class-name": f"airflow_provider_distribute.hooks.{name}.{hook_class}",
        **FORMS[name],
    }


def _modules(kind: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"airflow_provider_distribute.{kind}.{name}" for name in names]
    return [{"integration-name": "Asynchronous LLM inference", "python-modules": modules}]


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-distribute",
        "name": "Distribute",
        "description": "Asynchronous LLM inference on Distribute.AI and inference.net.",
        "integrations": [
            {
                "integration-name": "Asynchronous LLM inference",
                "external-doc-url": "https://docs.distribute.ai",
                "tags": ["ai"],
            }
        ],
        "hooks": _modules("hooks", "distribute", "inference_net"),
        "operators": _modules("operators", "bulk", "chat"),
        "sensors": _modules("sensors", "chat"),
        "triggers": _modules("triggers", "bulk", "chat"),
        "connection-types": [
            _connection_type("distribute", "DistributeHook"),
            _connection_type("inference_net", "InferenceNetHook"),
        ],
        "extra-links": ["airflow_provider_distribute.links.DashboardLink"],
        "task-decorators": [
            {
                "name": "async_chat_bulk",
                "class-name": "airflow_provider_distribute.decorators.bulk.async_chat_bulk_task",
            }
        ],
        "config": {
            "distribute": {
                "description": "Asynchronous LLM inference.",
                "options": {
                    "result_path": {
                        "description": (
                            "Directory URI below which bulk runs keep their record and leave their "
                            "results, on any storage that ObjectStoragePath knows, when the task names none."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "s3://aws_default@bucket/inference",
                        "default": None,
                    }
                },
            }
        },
    }
