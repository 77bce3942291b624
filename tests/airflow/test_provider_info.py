# SPDX-License-Identifier: Apache-2.0

"""What Airflow reads to know this provider."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import airflow
import jsonschema  # type: ignore[import-untyped]
import pytest
from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator
from airflow.providers_manager import ProvidersManager

from airflow_provider_distribute.get_provider_info import FORMS, get_provider_info
from airflow_provider_distribute.hooks import HOOKS
from airflow_provider_distribute.operators.chat import AsyncChatOperator, SubmitAsyncChatOperator
from airflow_provider_distribute.sensors.chat import AsyncChatSensor
from airflow_provider_distribute.services import SERVICES
from tests.airflow.supervisor import airflow_has

INFO = get_provider_info()
AIRFLOWS_VIEW: Any = ProvidersManager
#: From 3.2 on Airflow reads forms from the metadata; before, it asks the hook, if Flask-AppBuilder is there.
FORMS_ARE_DECLARED = airflow_has("airflow.sdk.providers_manager_runtime", "ProvidersManagerTaskRuntime")
#: Constraints that a form and a model both know.
CONSTRAINTS = ("minimum", "maximum", "exclusiveMinimum", "enum")


def imported(path: str) -> Any:
    """Return what a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def airflow_schema(name: str) -> jsonschema.Draft7Validator:
    """Return a schema that Airflow comes with."""
    return jsonschema.Draft7Validator(
        json.loads((Path(airflow.__path__[0]) / f"{name}.schema.json").read_text())
    )


def providers_manager() -> Any:
    """Return what a task's process asks for hooks."""
    try:
        from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
    except ImportError:  # before 3.2
        return AIRFLOWS_VIEW()
    manager: Any = ProvidersManagerTaskRuntime
    return manager()


def plain_schema(settings: Any, name: str) -> dict[str, Any]:
    """Return a field's JSON schema as a form writes it."""
    schema: dict[str, Any] = settings.model_json_schema()["properties"][name]
    if "anyOf" in schema:
        inner = [it for it in schema["anyOf"] if it["type"] != "null"]
        return {**schema, **inner[0], "type": [inner[0]["type"], "null"]}
    return schema


def test_matches_airflows_schema() -> None:
    """A provider whose metadata break the schema stops every Airflow process."""
    airflow_schema("provider_info").validate(INFO)


def test_entry_point_leads_to_it() -> None:
    """Airflow finds the metadata through the entry point of the installed distribution."""
    [entry] = [
        entry
        for entry in importlib.metadata.entry_points(group="apache_airflow_provider")
        if entry.dist and entry.dist.name == INFO["package-name"]
    ]
    assert entry.load()() == INFO


def test_package_name_is_canonical() -> None:
    """Airflow refuses a package name that is not the canonical name of the distribution."""
    name = importlib.metadata.distribution("airflow-provider-distribute").name
    assert INFO["package-name"] == re.sub(r"[-_.]+", "-", name).lower()


def test_importing_it_imports_nothing_else() -> None:
    """Every Airflow process imports the metadata, so they cost nothing."""
    program = "import sys, airflow_provider_distribute.get_provider_info; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"airflow", "httpx", "pydantic"}.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        module
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in INFO[kind]
        for module in entry["python-modules"]
    ],
)
def test_modules_exist(module: str) -> None:
    """Every module that is listed can be imported."""
    importlib.import_module(module)


@pytest.mark.parametrize(
    "path", [*INFO["extra-links"], *(it["hook-class-name"] for it in INFO["connection-types"])]
)
def test_classes_exist(path: str) -> None:
    """Every class that is listed can be imported from where the list says."""
    assert imported(path).__name__ == path.rpartition(".")[2]


def test_every_hook_has_a_connection_type() -> None:
    """Hooks, services and connection types are the same set."""
    listed = {it["connection-type"]: imported(it["hook-class-name"]) for it in INFO["connection-types"]}
    assert listed == HOOKS
    assert listed.keys() == SERVICES.keys()


@pytest.mark.parametrize("conn_type", sorted(FORMS))
def test_form_has_the_fields_of_the_settings(conn_type: str) -> None:
    """A field that a connection may have is in its form, and the other way round."""
    assert FORMS[conn_type]["conn-fields"].keys() == SERVICES[conn_type].settings.extras()


@pytest.mark.parametrize(
    ("conn_type", "name"),
    [(conn_type, name) for conn_type in sorted(FORMS) for name in FORMS[conn_type]["conn-fields"]],
)
def test_form_checks_what_the_settings_check(conn_type: str, name: str) -> None:
    """A form's types, bounds and choices are those of the settings, and it fills in their defaults."""
    form = FORMS[conn_type]["conn-fields"][name]["schema"]
    model = plain_schema(SERVICES[conn_type].settings, name)
    assert {key: form.get(key) for key in CONSTRAINTS} == {key: model.get(key) for key in CONSTRAINTS}
    if "null" in form["type"]:
        assert form["default"] is None
    else:
        assert (form["type"], form["default"]) == (model["type"], model["default"])


@pytest.mark.parametrize("conn_type", sorted(FORMS))
def test_airflow_knows_the_connection_type(conn_type: str) -> None:
    """The providers manager finds the hook of each connection type."""
    hook = providers_manager().hooks[conn_type]
    assert hook is not None
    assert hook.hook_class_name == f"{HOOKS[conn_type].__module__}.{HOOKS[conn_type].__name__}"
    assert (hook.connection_id_attribute_name, hook.hook_name) == ("conn_id", HOOKS[conn_type].hook_name)


def test_airflow_knows_the_link() -> None:
    """A link that is not listed is never shown."""
    assert set(INFO["extra-links"]) <= set(AIRFLOWS_VIEW().extra_links_class_names)


@pytest.mark.skipif(not FORMS_ARE_DECLARED, reason="this Airflow reads no forms from the metadata")
@pytest.mark.parametrize("conn_type", sorted(FORMS))
def test_ui_shows_the_form(conn_type: str) -> None:
    """The connection form hides what has no meaning, and names host and password by what they are."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    with warnings.catch_warnings():
        # Other providers' forms are loaded as well, and some of those are older than this Airflow.
        warnings.simplefilter("ignore")
        metas = {meta.connection_type: meta for meta in HookMetaService.hook_meta_data()}
    standard: Any = metas[conn_type].standard_fields
    assert (standard.host.title, standard.password.title) == ("Base URL", "API key")
    assert standard.login.hidden
    assert set(metas[conn_type].extra_fields or {}) == FORMS[conn_type]["conn-fields"].keys()


def test_loading_the_form_warns_of_nothing() -> None:
    """From 3.2 on Airflow deprecates forms that are built by the hook; below it, it asks the hook."""
    program = """if True:
        import warnings
        from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            HookMetaService.hook_meta_data()
        for it in caught:
            if "istribute" in f"{it.message} {it.filename}":
                print(it.category.__name__, it.message)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Warning" not in done.stdout


@pytest.mark.parametrize("conn_type", sorted(FORMS))
def test_form_of_older_airflows_says_what_extra_takes(conn_type: str) -> None:
    """Below 3.2 there are no typed fields: an example in the box of the extra names them all."""
    behaviour = HOOKS[conn_type].get_ui_field_behaviour()
    airflow_schema("customized_form_field_behaviours").validate(behaviour)
    assert "extra" not in behaviour["hidden_fields"]
    example = json.loads(behaviour["placeholders"]["extra"])
    assert example.keys() == SERVICES[conn_type].settings.extras()
    SERVICES[conn_type].settings.parse("any", {**example, "api_key": "key"})


@pytest.mark.parametrize(
    ("task", "base", "added"),
    [
        (SubmitAsyncChatOperator, BaseOperator, set()),
        (AsyncChatOperator, BaseOperator, {"execute_complete"}),
        (AsyncChatSensor, BaseSensorOperator, {"execute_complete"}),
    ],
)
def test_what_dag_authors_see_on_a_task_is_airflows(
    task: type[BaseOperator], base: type[BaseOperator], added: set[str]
) -> None:
    """Only what Airflow calls by name is public beside it."""
    assert {name for name in {*dir(task)} - {*dir(base)} if not name.startswith("_")} == added
