# SPDX-License-Identifier: Apache-2.0

"""The emulator itself, without a network: a request and the time in, a reply out."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_distribute.emulator.answers import answer
from airflow_provider_distribute.emulator.chance import digest, generator
from airflow_provider_distribute.emulator.contracts import CONTRACTS
from airflow_provider_distribute.emulator.contracts.base import read_json
from airflow_provider_distribute.emulator.exchange import Delivery, Operation, Refused, Reply, json_reply
from airflow_provider_distribute.emulator.faults import KINDS, Faults, Scene
from airflow_provider_distribute.emulator.jobs import Job, pack
from airflow_provider_distribute.emulator.ledger import Ledger
from airflow_provider_distribute.emulator.script import ODDITIES, Script, of_request, read

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from airflow_provider_distribute.emulator.contracts.base import Contract, Prompt
    from airflow_provider_distribute.emulator.exchange import Incoming
    from airflow_provider_distribute.emulator.faults import Fault
    from airflow_provider_distribute.emulator.settings import Settings

log = logging.getLogger(__name__)

LONGEST_METADATA = 1024
DEFAULT_LIMIT = 256
"""Tokens an answer is estimated at where the request sets no limit."""


class Service:
    """One service's jobs, and the state its options keep."""

    def __init__(self, contract: Contract, settings: Settings) -> None:
        self.contract = contract
        self.latency = settings.latency_of(contract.name)
        self.rate_limit = settings.rate_limit_of(contract.name)
        self.not_found = settings.not_found_of(contract.name)
        self.balance = math.inf if settings.balance is None else settings.balance
        self.jobs: dict[str, Job] = {}
        self.chance = generator(settings.seed, contract.name, "latency")

    def charge(self, prompt: Prompt) -> float:
        """What a request is estimated to cost, in US dollars."""
        prices = self.contract.prices
        per_prompt_token, per_answer_token = prices.get(prompt.model, prices[""])
        # Of integers that a double can only just hold, the product may be too large for one.
        answer_tokens = float(DEFAULT_LIMIT if prompt.limit is None else prompt.limit) * prompt.count
        return (prompt.words * per_prompt_token + answer_tokens * per_answer_token) / 1e6

    def hides(self, job: Job, now: float) -> bool:
        """Whether a look at ``job`` is answered as if there were no such job."""
        hidden = self.not_found
        return (
            now - job.submitted < hidden.seconds
            or job.looks <= hidden.looks
            or (hidden.until == "done" and not job.done(now))
        )


@dataclass(frozen=True, slots=True)
class Outage:
    """
    No request is processed until ``until`` (seconds since the epoch).

    :param status: what is answered; ``None`` if connections are reset.
    """

    until: float
    status: int | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """
    A job at one instant.

    :param status: the service's own word.
    :param submitted: seconds since the epoch.
    :param due: when it ends or ended, seconds since the epoch; ``None`` if never.
    :param looks: how often somebody asked for it.
    :param request: the body it was submitted with.
    """

    id: str
    service: str
    kind: str
    model: str
    status: str
    done: bool
    failed: bool
    submitted: float
    due: float | None
    looks: int
    request: dict[str, Any] = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """The request's metadata, empty if it had none."""
        return self.request.get("metadata") or {}


class Emulator:
    """
    Both services. Nothing in here waits, sends, or knows what time it is.

    :param settings: the options.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget everything that happened: jobs, ledger, faults given later, outage. Ids begin again."""
        self.services = {name: Service(contract, self.settings) for name, contract in CONTRACTS.items()}
        self.ledger = Ledger(self.settings.keep)
        self.faults = Faults(self._chance_of_rule)
        self.outage: Outage | None = None
        for fault in self.settings.rules():
            self.faults.add(fault)

    def _chance_of_rule(self, number: int) -> Random:
        return generator(self.settings.seed, "fault", number)

    def serve(self, incoming: Incoming, now: float) -> Reply:
        """
        Answer one request to a service, and write it down.

        :param now: seconds since the epoch.
        """
        visit = Visit(self, incoming, now)
        operation = incoming.route.operation.value
        try:
            reply = visit.reply()
        except Exception:  # a mistake of ours: whoever tests against it has to see it, and in JSON
            log.exception("The emulator failed at a request to %s: %s", incoming.service, operation)
            reply = visit.refusal(Refused(500, "The emulator failed; its log says where"))
        self.ledger.record(
            now,
            incoming.service,
            operation,
            job_id=visit.job_id or None,
            status=reply.sent_status,
            fault=visit.fault_kind,
            paid=visit.paid,
            metadata=visit.metadata,
            authorized=visit.authorized,
            prompt=visit.prompt.text if visit.prompt and self.settings.keep_prompts else None,
        )
        return reply

    def jobs(self) -> Iterable[Job]:
        """All jobs, those of one service after those of the other."""
        return (job for service in self.services.values() for job in service.jobs.values())

    def job(self, job_id: str) -> Job | None:
        """The job of that id, of whichever service."""
        return next((s.jobs[job_id] for s in self.services.values() if job_id in s.jobs), None)

    def finish(self, job: Job, now: float, *, error: str | None = None) -> None:
        """End a job now, as failed if there is an ``error``. One that has ended already stays as it is."""
        if not job.done(now):
            job.due = now
            error = job.script.error if error is None else error
            job.script = replace(job.script, never=False, status=None, error=error)

    def finish_all(self, now: float, *, service: str | None = None, error: str | None = None) -> int:
        """End all pending jobs, or those of one service, and return how many that were."""
        pending = [job for job in self.jobs() if service in (None, job.service) and not job.done(now)]
        for job in pending:
            self.finish(job, now, error=error)
        return len(pending)

    def describe(self, job: Job, now: float) -> JobView:
        """What tests and control requests are told about a job."""
        return JobView(
            id=job.id,
            service=job.service,
            kind=job.kind,
            model=job.model,
            status=self.services[job.service].contract.status(job, now),
            done=job.done(now),
            failed=job.failed(now),
            submitted=job.submitted,
            due=None if job.script.endless else job.due,
            looks=job.looks,
            request=json.loads(job.request),
        )

    def stats(self, now: float) -> dict[str, Any]:
        """Counts of requests and of jobs by their state."""
        jobs: dict[str, dict[str, int]] = {}
        looks: dict[str, dict[str, float]] = {}
        for name, service in self.services.items():
            states = Counter(
                "failed" if job.failed(now) else "succeeded" if job.done(now) else "pending"
                for job in service.jobs.values()
            )
            count = len(service.jobs)
            total = sum(job.looks for job in service.jobs.values())
            jobs[name] = {"created": count, **{s: states[s] for s in ("pending", "succeeded", "failed")}}
            looks[name] = {
                "total": total,
                "mean_per_job": round(total / count, 3) if count else 0.0,
                "most_per_job": max((job.looks for job in service.jobs.values()), default=0),
            }
        return {**self.ledger.stats(), "jobs": jobs, "looks": looks}


class Visit:
    """One request on its way through the emulator; what became of it is read off afterwards."""

    def __init__(self, emulator: Emulator, incoming: Incoming, now: float) -> None:
        self.emulator = emulator
        self.settings = emulator.settings
        self.incoming = incoming
        self.now = now
        self.service = emulator.services[incoming.service]
        self.contract = self.service.contract
        self.job_id = incoming.job_id
        self.authorized = False
        self.prompt: Prompt | None = None
        self.metadata: str | None = None
        self.fault_kind: str | None = None
        self.paid = 0

    def reply(self) -> Reply:
        """Decide the answer: outage, key, rate limit, faults, and then what was asked for."""
        outage = self.emulator.outage
        if outage is not None and self.now < outage.until:
            self.fault_kind = "outage"
            if outage.status is None:
                return Reply(delivery=Delivery.RESET)
            return self.refusal(Refused(outage.status, "Service unavailable"))
        try:
            self._check_key()
            self._check_size()
            self._check_rate()
        except Refused as refused:
            return self.refusal(refused)
        fault = self.emulator.faults.decide(
            self.contract.name, self.incoming.route.operation, self._asked_id(), self._text
        )
        if fault is None:
            return self._processed(None)
        self.fault_kind = fault.kind
        reply = self._processed(fault) if fault.needs_processing else Reply()
        effect = KINDS[fault.kind].effect
        return (
            reply
            if effect is None
            else effect(reply, fault, Scene(self.contract, self.settings.shape, self.now))
        )

    def refusal(self, refused: Refused) -> Reply:
        """Return the service's error."""
        body = self.contract.error(refused.status, refused.message, self.settings.shape)
        return json_reply(refused.status, body, refused.headers)

    def _check_key(self) -> None:
        reason = self.contract.refuse_key(self.incoming.authorization, self.settings.key, self.settings.shape)
        self.authorized = reason is None
        if reason and self.incoming.route.operation is not Operation.MODELS:
            raise Refused(401, reason)

    def _check_size(self) -> None:
        if len(self.incoming.body) > self.settings.largest_body:
            raise Refused(413, "Request entity too large")

    def _check_rate(self) -> None:
        limit = self.service.rate_limit
        if limit and (wait := limit.wait(self.now)):
            raise Refused(429, "Too many requests", limit.headers(wait, self.now))

    def _asked_id(self) -> str:
        """The id of the job a look is about, ``""`` if it cannot be told."""
        if self.incoming.route.operation is not Operation.LOOK:
            return ""
        try:
            self.job_id = self.contract.looked_at(self.incoming)
        except Refused:
            return ""
        return self.job_id

    def _text(self) -> str:
        """Prompt and metadata of the submission, or of the job a look is about."""
        job = self.service.jobs.get(self.job_id)
        return (job.request if job else self.incoming.body).decode(errors="replace")

    def _processed(self, fault: Fault | None) -> Reply:
        try:
            return ACTS[self.incoming.route.operation](self, fault)
        except Refused as refused:
            return self.refusal(refused)

    def _models(self, fault: Fault | None) -> Reply:
        return json_reply(200, self.contract.models())

    def _submit(self, fault: Fault | None) -> Reply:
        kind = self.incoming.route.kind
        body = read_json(self.incoming)
        if problems := list(self.contract.problems(kind, body)):
            raise Refused(400, "; ".join(problems[:5]))
        self.prompt = prompt = self.contract.prompt(kind, body)
        self.metadata = _short_json(prompt.metadata)
        try:
            script = of_request(prompt.metadata, prompt.text)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        if fault is not None and fault.script is not None:
            script = read(fault.script, script)
        copies = 2 if fault is not None and fault.kind == "duplicate" else 1
        charge = self.service.charge(prompt) * copies
        if charge > self.service.balance:
            raise Refused(402, "Insufficient balance")
        self.service.balance -= charge
        jobs = [self._new_job(prompt, script) for _ in range(copies)]
        self.paid = copies
        self.job_id = jobs[0].id
        return json_reply(200, self.contract.accepted(jobs[0]))

    def _new_job(self, prompt: Prompt, script: Script) -> Job:
        number = len(self.service.jobs) + 1
        scale = self.settings.time_scale
        due = self.service.latency.finish(self.now * scale, self.service.chance) / scale
        if script.latency is not None:
            due = self.now + script.latency / scale
        job = Job(
            id=self.contract.job_id(digest(self.settings.seed, self.contract.name, number)),
            service=self.contract.name,
            kind=self.incoming.route.kind,
            number=number,
            model=prompt.model,
            submitted=self.now,
            due=due,
            packed=pack(self.incoming.body),
            script=script,
        )
        self.service.jobs[job.id] = job
        return job

    def _look(self, fault: Fault | None) -> Reply:
        self.job_id = self.contract.looked_at(self.incoming)
        job = self.service.jobs.get(self.job_id)
        if job is None:
            raise Refused(404, "Not found")
        job.looks += 1
        if self.service.hides(job, self.now):
            raise Refused(404, "Not found")
        succeeded = job.done(self.now) and not job.failed(self.now)
        made = None
        if succeeded:
            prompt = self.contract.prompt(job.kind, json.loads(job.request))
            made = answer(prompt, job.script, self.settings.seed)
        result = self.contract.result(job, made, self.now, self.settings.shape)
        if succeeded:
            completion = self.contract.completion(result)
            for oddity in sorted(job.script.oddities):
                ODDITIES[oddity](completion)
        return json_reply(200, result)


ACTS = {Operation.SUBMIT: Visit._submit, Operation.LOOK: Visit._look, Operation.MODELS: Visit._models}


def _short_json(value: object) -> str | None:
    if value is None:
        return None
    text = json.dumps(value, separators=(",", ":"))
    return text if len(text) <= LONGEST_METADATA else None
