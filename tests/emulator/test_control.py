# SPDX-License-Identifier: Apache-2.0

"""The requests under ``/_emulator/``, as other processes use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.emulator.wire import chat

if TYPE_CHECKING:
    from airflow_provider_distribute.testing import InferenceEmulator


def submit(client: httpx.Client, **fields: Any) -> str:
    """Submit to distribute, and return the job's id."""
    return str(client.post("/async/chat/create", json=chat(**fields)).json().get("id"))


def test_the_ledger_can_be_selected_from_and_paged_through(client: httpx.Client) -> None:
    """Each page says where the next begins."""
    for number in range(5):
        submit(client, metadata={"row": str(number)})
    client.post("/async/chat/create", json={})
    first = client.get("/_emulator/ledger", params={"paid": "true", "limit": 3}).json()
    second = client.get("/_emulator/ledger", params={"paid": "true", "after": first["next"]}).json()
    assert [entry["metadata"]["row"] for entry in first["entries"] + second["entries"]] == list("01234")
    assert second["next"] is None


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status": "400"}, 1),
        ({"status": "reset"}, 1),
        ({"fault": "reset"}, 1),
        ({"authorized": "false"}, 1),
        ({"operation": "look"}, 0),
        ({"service": "distribute"}, 4),
        ({"paid": "1"}, 1),
        ({"job_id": "x"}, 0),
    ],
)
def test_each_column_selects(
    client: httpx.Client, emulator: InferenceEmulator, query: dict[str, str], found: int
) -> None:
    """Of an accepted, a bad, an unauthorized and a reset submission."""
    submit(client)
    client.post("/async/chat/create", json={})
    client.post("/async/chat/create", json={}, headers={"Authorization": "wrong"})
    emulator.fault("reset")
    with pytest.raises(httpx.TransportError):
        submit(client)
    assert len(client.get("/_emulator/ledger", params=query).json()["entries"]) == found


@pytest.mark.parametrize(
    "path", ["ledger?colour=red", "ledger?after=x", "ledger?limit=x", "ledger?status=x", "ledger?paid=x"]
)
def test_a_wrong_query_is_400(client: httpx.Client, path: str) -> None:
    """A test that selects nothing by mistake would pass by mistake."""
    assert client.get(f"/_emulator/{path}").status_code == 400


def test_stats_hold_connections_too(client: httpx.Client) -> None:
    """Beside the counts of the ledger."""
    submit(client)
    stats = client.get("/_emulator/stats").json()
    assert stats["paid"] == {"distribute": 1}
    assert stats["connections"] == {"opened": 1, "open": 1, "peak": 1}


def test_jobs_can_be_listed_page_by_page(client: httpx.Client) -> None:
    """With their requests and what became of them."""
    ids = [submit(client, metadata={"row": str(n)}) for n in range(3)]
    first = client.get("/_emulator/jobs", params={"limit": 2}).json()
    second = client.get("/_emulator/jobs", params={"after": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids
    assert second["next"] is None
    assert client.get("/_emulator/jobs", params={"service": "inference_net"}).json()["jobs"] == []
    job = client.get(f"/_emulator/jobs/{ids[0]}").json()
    assert (job["status"], job["looks"], job["request"]["metadata"]) == ("COMPLETED", 0, {"row": "0"})


def test_a_job_can_be_finished(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """As succeeded or, with an error, as failed."""
    emulator.fault("never")
    first, second = submit(client), submit(client)
    assert client.post(f"/_emulator/jobs/{first}/finish").json()["status"] == "COMPLETED"
    assert client.post(f"/_emulator/jobs/{second}/finish", json={"error": "boom"}).json()["status"] == "ERROR"


def test_all_jobs_of_a_service_can_be_finished(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """Those that are pending."""
    emulator.fault("never")
    submit(client)
    other = client.post("/_emulator/jobs/finish", json={"service": "inference_net"}).json()
    assert other == {"finished": 0}
    assert client.post("/_emulator/jobs/finish").json() == {"finished": 1}
    assert emulator.jobs[0].done


@pytest.mark.parametrize(("method", "path"), [("GET", "jobs/x"), ("POST", "jobs/x/finish")])
def test_a_job_that_is_not_there_is_404(client: httpx.Client, method: str, path: str) -> None:
    """And says so."""
    reply = client.request(method, f"/_emulator/{path}")
    assert (reply.status_code, reply.json()["message"]) == (404, "No such job")


def test_faults_can_be_given_counted_and_taken_away(client: httpx.Client) -> None:
    """As an object, as a spec, or several at once."""
    given = client.post("/_emulator/faults", json=[{"kind": 500, "count": 1}, "502:count=1"]).json()["faults"]
    assert [(rule["id"], rule["kind"], rule["hits"]) for rule in given] == [(1, "500", 0), (2, "502", 0)]
    submit(client)
    rules = client.get("/_emulator/faults").json()["faults"]
    assert [(rule["seen"], rule["hits"]) for rule in rules] == [(1, 1), (0, 0)]
    assert [rule["id"] for rule in client.delete("/_emulator/faults/1").json()["faults"]] == [2]
    assert client.post("/_emulator/faults", json={"kind": "503"}).json()["faults"][0]["id"] == 3
    assert client.delete("/_emulator/faults").json() == {"faults": []}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", b'{"kind": "explode"}'),
        ("faults", b"{"),
        ("faults", b"7"),
        ("faults", b'["500:x"]'),
        ("outage", b'{"mode": "sulk"}'),
        ("outage", b'{"seconds": 1e9}'),
        ("jobs/finish", b'{"colour": 1}'),
    ],
)
def test_a_wrong_control_request_is_400(client: httpx.Client, path: str, body: bytes) -> None:
    """With what is wrong."""
    reply = client.post(f"/_emulator/{path}", content=body)
    assert reply.status_code == 400
    assert reply.json()["message"]


def test_an_outage_can_be_begun_and_ended(client: httpx.Client) -> None:
    """The control requests are answered meanwhile."""
    client.post("/_emulator/outage", json={"mode": 502})
    assert client.post("/async/chat/create", json=chat()).status_code == 502
    client.delete("/_emulator/outage")
    assert client.post("/async/chat/create", json=chat()).status_code == 200


def test_reset_forgets(client: httpx.Client) -> None:
    """Jobs, ledger and faults; ids begin again."""
    first = submit(client)
    client.post("/_emulator/faults", json="500")
    client.post("/_emulator/reset")
    assert client.get("/_emulator/ledger").json()["entries"] == []
    assert submit(client) == first


def test_control_requests_are_not_in_the_ledger(client: httpx.Client, emulator: InferenceEmulator) -> None:
    """Nor is one that there is not."""
    client.get("/_emulator/stats")
    assert client.get("/_emulator/nothing").status_code == 404
    assert emulator.requests() == []
