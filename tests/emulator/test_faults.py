# SPDX-License-Identifier: Apache-2.0

"""Faults: what each does to the request, the answer and the bill, and which requests a rule hits."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from airflow_provider_distribute.emulator.core import Outage
from airflow_provider_distribute.emulator.exchange import Delivery, Reply
from airflow_provider_distribute.emulator.faults import KINDS, MESSAGES, from_json, parse
from tests.emulator.wire import NOON, Wire

if TYPE_CHECKING:
    from collections.abc import Callable


def paid(wired: Wire) -> int:
    """How many jobs are billed."""
    return wired.emulator.ledger.paid[wired.service]


@pytest.mark.parametrize("status", MESSAGES)
def test_a_status_is_answered_instead_and_nothing_is_paid(wire: Callable[..., Wire], status: int) -> None:
    """In the service's own form of error, without Retry-After."""
    wired = wire(faults=(str(status),))
    reply = wired.submit()
    assert (reply.status, reply.headers, paid(wired)) == (status, {}, 0)
    assert MESSAGES[status] in reply.body.decode()


def test_a_status_may_have_a_message_and_a_retry_after(wire: Callable[..., Wire]) -> None:
    """In seconds or as a date."""
    wired = wire(faults=("429:retry_after=2.5,value=slow down,count=1", "503:retry_after=60,http_date=true"))
    first, second = wired.submit(), wired.submit()
    assert first.headers == {"Retry-After": "3"}
    assert b"slow down" in first.body
    assert parsedate_to_datetime(second.headers["Retry-After"]).timestamp() == NOON + 60


@pytest.mark.parametrize("kind", ["500", "reset", "hang:seconds=9", "redirect"])
def test_accepted_means_paid_but_not_answered(wire: Callable[..., Wire], kind: str) -> None:
    """The outcome a client cannot know."""
    spec = f"{kind}{',' if ':' in kind else ':'}accepted=true"
    wired = wire(faults=(spec,))
    reply = wired.submit()
    assert paid(wired) == 1
    assert (reply.status, reply.delivery) != (200, Delivery.WHOLE)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("reset", lambda r, whole: r.delivery is Delivery.RESET and r.delay == 0),
        ("hang:seconds=9", lambda r, whole: r.delivery is Delivery.RESET and r.delay == 9),
        ("redirect", lambda r, whole: r.status == 307 and r.headers == {"Location": "/elsewhere"}),
        ("redirect:value=http://127.0.0.2/", lambda r, whole: r.headers == {"Location": "http://127.0.0.2/"}),
    ],
)
def test_instead_of_an_answer_nothing_is_processed(
    wire: Callable[..., Wire], kind: str, check: Callable[[Reply, Reply], bool]
) -> None:
    """And so nothing is paid."""
    whole = wire().submit()
    wired = wire(faults=(kind,))
    assert check(wired.submit(), whole)
    assert paid(wired) == 0


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("slow:seconds=9", lambda r, whole: r.delay == 9 and r.body == whole.body),
        ("truncated", lambda r, whole: r.body == whole.body[: len(whole.body) // 2]),
        ("cut", lambda r, whole: r.delivery is Delivery.CUT and r.body == whole.body),
        ("malformed", lambda r, whole: r.body == whole.body[:-1] + b",,}"),
        ("empty", lambda r, whole: r.body == b"" and r.status == 200),
        ("html", lambda r, whole: r.content_type == "text/html" and b"Sign in" in r.body),
        ("content_type", lambda r, whole: r.content_type == "text/plain" and r.body == whole.body),
        ("oversized:size=99", lambda r, whole: r.padding == 99 and r.body == whole.body),
    ],
)
def test_a_spoilt_answer_is_paid(
    wire: Callable[..., Wire], kind: str, check: Callable[[Reply, Reply], bool]
) -> None:
    """The request went through."""
    whole = wire().submit()
    wired = wire(faults=(kind,))
    assert check(wired.submit(), whole)
    assert paid(wired) == 1


def test_an_unknown_status_is_reported_by_looks_only(wire: Callable[..., Wire]) -> None:
    """The submission passes, and does not count; a 404 stays a 404."""
    wired = wire(faults=("unknown_status:value=ARCHIVED,count=2",))
    job = wired.job()
    assert wired.look("00000000-0000-4000-8000-000000000000").status == 404
    assert wired.status(job) == "ARCHIVED"
    assert wired.status(job) in ("COMPLETED", "Success")


def test_a_duplicate_is_recorded_and_paid_twice(wire: Callable[..., Wire]) -> None:
    """One id is answered; the other job is there."""
    wired = wire(faults=("duplicate:count=1",))
    job = wired.job()
    jobs = wired.emulator.services[wired.service].jobs
    assert next(iter(jobs)) == job
    assert (len(jobs), paid(wired)) == (2, 2)
    wired.job()
    assert paid(wired) == 3


def test_script_words_are_faults_of_jobs(wire: Callable[..., Wire]) -> None:
    """A share of the jobs fails, with a reason; looks are left alone."""
    wired = wire(faults=("error:rate=0.5,value=overloaded",))
    statuses = [wired.status(wired.job()) for _ in range(100)]
    failed = statuses.count("ERROR" if wired.service == "distribute" else "Failed")
    assert 30 < failed < 70
    assert "overloaded" in {job.script.error for job in wired.emulator.jobs()}


@pytest.mark.parametrize("word", ["never", "null_content", "status"])
def test_a_word_without_a_value(wire: Callable[..., Wire], word: str) -> None:
    """Works like the same word in a request's metadata."""
    wired = wire(faults=(word,))
    scripted = wire()
    by_fault, by_request = wired.job(), scripted.job(metadata={"emulate": word})
    scripts = [
        w.emulator.services[w.service].jobs[j].script for w, j in ((wired, by_fault), (scripted, by_request))
    ]
    assert scripts[0] == scripts[1]


class TestSelection:
    """Which requests a rule hits."""

    def statuses(self, wired: Wire, count: int = 6) -> list[int]:
        """Submit some requests."""
        return [wired.submit().status for _ in range(count)]

    def test_count_and_after(self, wire: Callable[..., Wire]) -> None:
        """Skip the first, then hit so many."""
        wired = wire(faults=("500:after=2,count=2",))
        assert self.statuses(wired) == [200, 200, 500, 500, 200, 200]

    def test_the_first_rule_that_hits_decides(self, wire: Callable[..., Wire]) -> None:
        """A rule that is spent leaves the request to the next."""
        wired = wire(faults=("500:count=1", "502:count=1"))
        assert self.statuses(wired, 3) == [500, 502, 200]

    def test_rate_is_repeated_by_the_seed(self, wire: Callable[..., Wire]) -> None:
        """And another seed hits others."""
        runs = [self.statuses(wire(faults=("500:rate=0.5",), seed=seed), 40) for seed in (1, 1, 2)]
        assert runs[0] == runs[1] != runs[2]
        assert 8 < runs[0].count(500) < 32

    def test_service(self) -> None:
        """One service fails, the other does not."""
        wires = [Wire(name, faults=("500:service=distribute",)) for name in ("distribute", "inference_net")]
        assert [wired.submit().status for wired in wires] == [500, 200]

    def test_operation(self, wire: Callable[..., Wire]) -> None:
        """Looks fail, submissions do not."""
        wired = wire(faults=("500:operation=look",))
        assert wired.look(wired.job()).status == 500

    def test_job(self, wire: Callable[..., Wire]) -> None:
        """Looks at one job."""
        wired = wire()
        first, second = wired.job(), wired.job()
        wired.emulator.faults.add(parse(f"500:job={first}"))
        assert [wired.look(first).status, wired.look(second).status] == [500, 200]

    def test_match(self, wire: Callable[..., Wire]) -> None:
        """The submission of a request, and the looks at its job."""
        wired = wire()
        job = wired.job("Say hello.", metadata={"row": "r17"})
        wired.emulator.faults.add(parse("500:match=r17"))
        assert [wired.submit().status, wired.submit("r17").status, wired.look(job).status] == [200, 500, 500]

    def test_a_malformed_look_can_be_hit_too(self) -> None:
        """It asks for no job, which is no reason to fail here."""
        wired = Wire("distribute", faults=("503",))
        assert wired.look("nonsense").status == 503

    def test_a_wrong_key_is_not_counted(self, wire: Callable[..., Wire]) -> None:
        """It never gets that far."""
        wired = wire(faults=("500:count=1",))
        good, wired.header = wired.header, "wrong"
        assert wired.submit().status == 401
        wired.header = good
        assert wired.submit().status == 500

    def test_rules_can_be_removed(self, wire: Callable[..., Wire]) -> None:
        """One or all; ids are not used again."""
        wired = wire(faults=("500", "502"))
        wired.emulator.faults.remove(1)
        assert wired.submit().status == 502
        wired.emulator.faults.remove()
        assert wired.submit().status == 200
        assert wired.emulator.faults.add(parse("500")).id == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("explode", "no such fault 'explode'; there are 400"),
        ("500:rate=2", "less than or equal to 1"),
        ("500:service=acme", "service"),
        ("500:count=0", "greater than 0"),
        ("hang:seconds=601", "less than or equal to 600"),
        ("500:colour=red", "colour: Extra inputs are not permitted"),
        ("latency:value=soon", "could not convert"),
    ],
)
def test_a_wrong_rule_is_refused(spec: str, says: str) -> None:
    """With what there is instead."""
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(spec)


def test_a_rule_may_be_an_object() -> None:
    """As control requests have it; a status may be a number."""
    assert (
        from_json({"kind": 429, "retry_after": 1})
        == parse("429:retry_after=1")
        == from_json("429:retry_after=1")
    )


def test_every_kind_is_documented() -> None:
    """In the module's text, or as a word of the script."""
    from airflow_provider_distribute.emulator import faults, script

    documented = set(re.findall(r"``(\w+)", f"{faults.__doc__} {script.__doc__}"))
    assert {kind for kind in KINDS if not kind.isdigit()} <= documented


@pytest.mark.parametrize(("status", "sent"), [(503, 503), (None, None)])
def test_an_outage_answers_nothing_until_it_is_over(
    wire: Callable[..., Wire], status: int | None, sent: int | None
) -> None:
    """Keys are not looked at either; what comes is in the ledger."""
    wired = wire()
    wired.emulator.outage = Outage(NOON + 10, status)
    wired.header = None
    assert wired.submit().sent_status == sent
    assert wired.emulator.ledger.faults == {"outage": 1}
    wired.header = Wire(wired.service).header
    wired.now += 10
    assert wired.submit().status == 200


def test_a_spoilt_answer_may_be_a_refusal(wire: Callable[..., Wire]) -> None:
    """The answer to a bad request is truncated like any other."""
    wired = wire(faults=("truncated",))
    reply = wired.submit(model=1)
    assert reply.status == 400
    with pytest.raises(json.JSONDecodeError):
        json.loads(reply.body)
