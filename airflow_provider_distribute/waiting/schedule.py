# SPDX-License-Identifier: Apache-2.0

"""
Which pending jobs to look at, and when.

A service says that a job is finished only when it is asked. :class:`Schedule` decides whom to ask next, for
all waiters of one process together. It does no I/O and reads no clock: ``now`` goes in, keys come out.

**What is promised** for jobs with one ``poke_interval`` P, beside a timer for each job that looks every P
seconds:

- The mean delay between a job's end and the look that finds it is at most P / 2, whatever the order. (The
  mean is over jobs that end at any time. One that always ends right after a look is found late, by a timer
  as well.)
- At most a tenth more looks, whatever the order, for ten jobs or more. (The corner: jobs that are alone, and
  a few that take about P.)
- Far fewer looks when jobs end roughly in the order of submission.
- Looks are spread out. Adding a thousand jobs at once causes no burst.

**How.** Jobs wait in a *line*, oldest first. A look that sees a job ended is a *find*. Two *beats* walk along
the line:

- the *sweep* goes round the first W jobs of the line once in s seconds;
- the *patrol* looks at whoever has not been looked at for longest; a job's turn comes once in B seconds.

Let p be the share of jobs that end among the first W of n. Then the mean delay is (p s + (1 - p) B) / 2 and
the rate of looks is W / s + (n - W) / B. The lowest rate at which the mean delay is P / 2 is reached with ::

    s = P sqrt(W / p) / c
    B = P sqrt((n - W) / (1 - p)) / c
    c = sqrt(W p) + sqrt((n - W) (1 - p))

and is c c / P. By Cauchy-Schwarz c c <= n, *whatever p is*: a wrong p cannot cost more looks than the fixed
interval, it costs delay. So p is believed on evidence only.

An example: n = 100 jobs, P = 30 s, and p = 0.9 of the finds are among the first W = 10. Then c = 3 + 3 = 6:
the sweep takes s = 30 sqrt(10 / 0.9) / 6 = 17 s, the patrol B = 30 sqrt(90 / 0.1) / 6 = 150 s, and together
they send 36 / 30 = 1.2 looks a second instead of the timer's 100 / 30 = 3.3.

The line counts at which places finished jobs were found, by powers of two, and takes the W with the smallest
c; when that would not save enough (``SAVING``) there is no sweep, and the patrol is the fixed interval. Half
of the finds in the outer half of W count as beyond it: such a job may have ended while it was still farther
back. A find of the patrol beyond W halves all counts, so an order that breaks is soon unlearned. Until a job
has been found, the plan assumes order, and the more so the longer nothing is found: one find at the head is
taken as given per ``SILENCE`` intervals, at most ``OPTIMISM`` per job. If that is wrong, the first finds come
about one P late per find taken as given.

A find calls for another look at once, a second one in a row for ``BACKLOG`` more, and a pending job ends the
run, so a backlog is cleared at a pace that doubles with every answer. Jobs that are over before anybody looks
are found together. No such look goes to a job that is younger than any that was ever found in the line.

**First looks** come at an age of 0.7 to 1.3 P (``FIRST``), so a job that takes less costs hardly more than
the one look of the timer. The first job of an empty line is looked at earlier (``SCOUT``): if all end soon,
its find leads to the others, long before the timer's first look. It tells nothing of the order. Second looks
are evened out.

**A lone job** is looked at after about 1 s, and then each time after one to eight times its age, up to P. The
steps are drawn anew, so that a job that takes less than P is found within P / 2 on average, whatever it
takes. At 30 s that is three looks more than the timer's, however long the job takes.

**The corner.** A job costs one look at least, and the timer spends no more on a job that takes P or less.
Whoever knows nothing of the job cannot do that and find it within P / 2 on average: of jobs that end at any
time before 2 P, ten cost 1.2 times the timer's looks and are found a tenth sooner, a hundred cost 1.1 times.
Jobs that are submitted one by one, each after the last has ended, are all lone.

Each ``poke_interval`` has its own line, which remembers what it learned when it is empty.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain, count
from math import inf, sqrt
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

PACE = 1.02  # laps of the patrol, for each of the fixed interval; pays for latency, jitter and wrong beliefs
FIRST = 0.7, 1.3  # laps until the first look at a new job, at least and at most
SCOUT = 0.4  # laps until the first look at a job that found its line empty
SAVING = 0.75  # the share of the looks that a sweep must not exceed to be worth its risk
MEMORY = 200  # finds
EVEN = 1.0  # finds taken as given, spread evenly over the line
OPTIMISM = 0.02  # finds at the head of a silent line taken as given, for each job at most
SILENCE = 8  # poke_intervals of silence for each such find
YOUNGER = 0.95  # of the youngest age ever found: below it a job gets no look that a find calls for
BACKLOG = 2  # looks that a find calls for at once, if the one before it was a find as well; else it is one
SLACK = 2.0  # the patrol's shortest step is step / SLACK; beside a sweep its longest is step * SLACK
STALL = 0.25  # seconds of steps that are made up for when due() was called late
CLUTTER = 1.1  # entries of the patrol's queue for each job of the line, at most
GRAIN = 1e-6  # seconds that make no difference, or rounding could put off a look for ever
JITTER = 0.1  # of an interval, either way
LONE_FIRST = 1.0  # seconds until the first look at a lone job
LONE_GROWTH = 8.0  # its next look comes after one to so many times its age, while that is below poke_interval

_GOLDEN = (sqrt(5) - 1) / 2
_number = attrgetter("number")


class _Job:
    """One pending job: ``at`` is when a look was promised, ``looked`` when its last look went out."""

    __slots__ = (
        *("key", "number", "line", "added", "looked", "at"),
        *("flying", "hinted", "queued", "lone", "fresh", "asked_by", "place"),
    )

    def __init__(self, key: str, number: int, line: _Line, now: float) -> None:
        self.key = key
        self.number = number
        self.line = line
        self.added = self.looked = now
        self.at = inf
        self.flying = self.hinted = self.queued = self.lone = False
        self.asked_by: _Beat | None = None
        self.place = 0
        self.fresh = True

    @property
    def phase(self) -> float:
        """A share of a lap; those of jobs that come one after another are spread evenly."""
        return self.number * _GOLDEN % 1

    @property
    def idle(self) -> bool:
        return not self.flying and self.at == inf


class _Beat:
    """What both beats share: ``size`` jobs have a turn in ``lap`` seconds; ``free`` turns come at once."""

    __slots__ = ("flying", "free", "lap", "last", "line", "run", "size")

    def __init__(self, line: _Line, now: float) -> None:
        self.line: _Line = line
        self.last = now
        self.lap = inf
        self.size = self.flying = self.run = self.free = 0

    def when(self) -> float:
        """When the next turn comes; ``inf`` if there is nobody to look at."""
        planned = self.planned()
        if planned == inf:
            return inf
        return self.last if self.free else planned

    def planned(self) -> float:
        """When the next turn comes that is not free; ``inf`` if there is nobody to look at."""
        raise NotImplementedError

    def pick(self) -> _Job | None:
        """Whose turn it is."""
        raise NotImplementedError

    def tick(self, at: float, now: float) -> _Job | None:
        """Take the turn that came at ``at``; return who is looked at."""
        job = self.pick()
        if job is None:
            self.free, self.last = 0, now + self.lap
            return None
        if self.free and now - job.added < self.line.youngest * YOUNGER:
            self.free = 0
            return None
        if self.free:
            self.free -= 1
        else:
            self.last = max(at, now - STALL)
        job.asked_by = self
        self.flying += 1
        return job

    def saw(self, done: bool) -> None:
        self.run = self.run + 1 if done else 0
        self.free = self.free + min(self.run, BACKLOG) if done else 0

    def rest(self, now: float) -> None:
        """The line was empty until now."""
        self.last, self.run, self.free = now, 0, 0


class _Sweep(_Beat):
    """
    Goes round the head of the line.

    Jobs whose look is in flight are taken to have ended, so the next turn goes to the job behind them. That
    clears a backlog several jobs at a time.
    """

    __slots__ = ("cursor",)

    def __init__(self, line: _Line, now: float) -> None:
        super().__init__(line, now)
        self.cursor = -1

    def planned(self) -> float:
        return self.last + self.lap / self.size if self.size else inf

    def pick(self) -> _Job | None:
        jobs = self.line.jobs
        end = min(len(jobs), self.size + self.flying)
        start = min(self.line.index(self.cursor + 1), end)
        for index in chain(range(start, end), range(start)):
            job = jobs[index]
            if job.idle:
                return job
        return None

    def tick(self, at: float, now: float) -> _Job | None:
        job = super().tick(at, now)
        if job:
            self.cursor = job.number
        return job


class _Patrol(_Beat):
    """Looks at whoever was not looked at for longest. The queue learns of other looks when a turn comes."""

    __slots__ = ("queue",)

    def __init__(self, line: _Line, now: float) -> None:
        super().__init__(line, now)
        self.queue: list[tuple[float, int, _Job]] = []

    def enqueue(self, job: _Job) -> None:
        if not job.queued:
            job.queued = True
            heappush(self.queue, (job.looked, job.number, job))

    def oldest(self) -> _Job | None:
        while self.queue:
            looked, number, job = self.queue[0]
            if job.line is not self.line:
                heappop(self.queue)
            elif not job.idle:
                heappop(self.queue)
                job.queued = False
            elif looked != job.looked:
                heapreplace(self.queue, (job.looked, number, job))
            else:
                return job
        return None

    def tidy(self) -> None:
        """Let go of jobs that left, once they are many: far back in the queue their turn may never come."""
        if len(self.queue) <= CLUTTER * len(self.line.jobs) + 64:
            return
        ours = [entry for entry in self.queue if entry[2].line is self.line]
        for _, _, job in ours:
            job.queued = job.idle
        self.queue = [entry for entry in ours if entry[2].queued]
        heapify(self.queue)

    def planned(self) -> float:
        if (job := self.oldest()) is None:
            return inf
        step = self.lap / self.size
        longest = self.last + step * SLACK if self.line.sweep.size else inf
        return min(max(job.looked + self.lap, self.last + step / SLACK), longest)

    def pick(self) -> _Job | None:
        return self.oldest()


class _Line:
    """The pending jobs of one ``poke_interval`` in order of submission, and what was learned."""

    __slots__ = (
        "found",
        "jobs",
        "patrol",
        "planned_for",
        "poke_interval",
        "silent_since",
        "sweep",
        "youngest",
    )

    def __init__(self, poke_interval: float, now: float) -> None:
        self.poke_interval = poke_interval
        self.jobs: list[_Job] = []
        self.sweep = _Sweep(self, now)
        self.patrol = _Patrol(self, now)
        self.found = [0.0] * 32  # finds at the places 0, 1-2, 3-6, 7-14, ...
        self.youngest = inf  # seconds from a job's submission until it was found, at least
        self.planned_for = 0  # jobs
        self.silent_since = now

    def rest(self, now: float) -> None:
        """The line was empty until now."""
        self.silent_since = now
        self.sweep.rest(now)
        self.patrol.rest(now)

    def index(self, number: int) -> int:
        return bisect_left(self.jobs, number, key=_number)

    def place(self, job: _Job) -> int:
        """A job's place in the line, from 0, less the jobs whose look by the sweep is in flight."""
        finds = self.sweep.flying - 1 if job.asked_by is self.sweep else 0
        return max(0, self.index(job.number) - finds)

    def learn(self, job: _Job, now: float) -> None:
        age = now - job.added
        self.youngest = min(self.youngest, age)
        if len(self.jobs) == 1 or age < FIRST[0] * self.poke_interval:
            return
        surprise = job.asked_by is self.patrol and job.place >= self.sweep.size > 0
        keep = 0.5 if surprise else min(1, MEMORY / (sum(self.found) + 1))
        self.found = [finds * keep for finds in self.found]
        self.found[(job.place + 1).bit_length() - 1] += 1

    def plan(self, now: float) -> None:
        n = self.planned_for = len(self.jobs)
        finds_known = sum(self.found)
        silence = 0.0 if finds_known else (now - self.silent_since) / self.poke_interval
        within = min(silence / SILENCE, OPTIMISM * n)
        total = within + EVEN + finds_known
        best, head, share = sqrt(SAVING * n), 0, 0.0
        for power, finds in enumerate(self.found[: (n // 2 + 1).bit_length() - 1]):
            w = 2 ** (power + 1) - 1
            within += finds
            slid_in = finds / 2 if power else 0.0
            p = (within - slid_in + EVEN * w / n) / total
            if (c := sqrt(w * p) + sqrt((n - w) * (1 - p))) < best:
                best, head, share = c, w, p
        scale = self.poke_interval / PACE / (best if head else sqrt(n))
        self.sweep.size, self.patrol.size = head, n - head
        self.sweep.lap = scale * sqrt(head / share) if head else inf
        self.patrol.lap = scale * sqrt((n - head) / (1 - share))


class Schedule:
    """
    The looks at all pending jobs that share a connection.

    Times are seconds of one clock that never goes back. Every method but :meth:`add`
    ignores a key that nobody waits for.

    :param rng: Source of the jitter. The same seed and the same calls give the same looks.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._jobs: dict[str, _Job] = {}
        self._lines: dict[float, _Line] = {}
        self._beats: list[_Beat] = []
        self._promises: list[tuple[float, int, _Job]] = []
        self._ties = count()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, key: str, *, now: float, poke_interval: float) -> None:
        """
        Begin to wait for a job; if it is waited for already, the shorter interval counts from now on.

        :param poke_interval: Seconds between two looks of the fixed schedule that this one stands for.
        :raises ValueError: ``poke_interval`` is not a positive number.
        """
        if not 0 < poke_interval < inf:
            raise ValueError(f"poke_interval must be a positive number of seconds, not {poke_interval!r}.")
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(key, next(self._numbers), self._line(poke_interval, now), now)
            self._join(job, now)
            if len(self._jobs) == 1:
                job.lone = True
                self._promise(job, now + min(LONE_FIRST, SCOUT * poke_interval) * self._jitter())
        elif poke_interval < job.line.poke_interval:
            self._leave(job, now)
            job.line = self._line(poke_interval, now)
            self._join(job, now)

    def discard(self, key: str, *, now: float) -> None:
        """Wait no longer for a job. An answer still on its way is ignored."""
        if job := self._jobs.pop(key, None):
            self._land(job)
            job.at, job.lone = -inf, False
            self._leave(job, now)

    def due(self, now: float, limit: int) -> list[str]:
        """Keys to look at now, at most ``limit``; in flight until :meth:`saw` or :meth:`failed` is told."""
        keys: list[str] = []
        while len(keys) < limit:
            promised, (turn, beat) = self._promised(), self._turn()
            if min(promised, turn) > now + GRAIN:
                break
            job = self._keep() if beat is None or promised <= turn else beat.tick(turn, now)
            if job:
                self._send(job, now)
                keys.append(job.key)
            if beat and turn < promised and not any(beat.line.found):
                beat.line.plan(now)
        return keys

    def saw(self, key: str, *, done: bool, now: float) -> None:
        """A look was answered. ``done`` ends the wait."""
        job = self._jobs.get(key)
        if job is None or not (done or job.flying):
            return
        if beat := self._land(job):
            beat.saw(done)
        if done:
            job.line.learn(job, now)
            self.discard(key, now=now)
        elif job.hinted:
            self._promise(job, now)
        elif job.lone and (age := now - job.added) < job.line.poke_interval:
            longest = min(LONE_GROWTH * age, job.line.poke_interval)
            self._promise(job, now + self._rng.uniform(age, longest))
        else:
            self._release(job)

    def failed(self, key: str, *, now: float, retry_in: float) -> None:
        """
        A look got no answer.

        :param retry_in: Seconds until the job is looked at again, and not before unless by a hint.
        """
        if job := self._jobs.get(key):
            self._land(job)
            job.lone = False
            self._promise(job, now + retry_in)

    def hint(self, key: str, *, now: float) -> None:
        """Somebody says that a job may be done: look at once, and again if a look is in flight."""
        if job := self._jobs.get(key):
            job.lone, job.hinted = False, job.flying
            if not job.flying:
                self._promise(job, now)

    def next_at(self, now: float) -> float | None:
        """When :meth:`due` has a key next, seldom earlier, never later. None: not until told something."""
        at = min(self._promised(), self._turn()[0])
        return None if at == inf else max(now, at)

    def _jitter(self) -> float:
        return self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _line(self, poke_interval: float, now: float) -> _Line:
        if poke_interval not in self._lines:
            line = self._lines[poke_interval] = _Line(poke_interval, now)
            self._beats += line.sweep, line.patrol
        return self._lines[poke_interval]

    def _join(self, job: _Job, now: float) -> None:
        line = job.line
        earliest, latest = FIRST
        laps = earliest + (latest - earliest) * job.phase
        if not line.jobs:
            line.rest(now)
            laps = SCOUT
        insort(line.jobs, job, key=_number)
        if len(line.jobs) > line.planned_for * 1.05:
            line.plan(now)
        job.looked = now + line.patrol.lap * (laps - 1)
        job.queued = False
        line.patrol.enqueue(job)

    def _leave(self, job: _Job, now: float) -> None:
        line = job.line
        del line.jobs[line.index(job.number)]
        line.patrol.tidy()
        if line.jobs:
            line.plan(now)
        else:
            line.sweep.size = 0
            line.planned_for = 0

    def _send(self, job: _Job, now: float) -> None:
        job.flying, job.hinted = True, False
        job.looked = now + job.line.patrol.lap * (self._jitter() - 1)
        if job.fresh:
            # First looks are close together: the second ones come as evenly as there is time for.
            earliest, latest = FIRST
            job.looked += job.line.patrol.lap * (1 - latest + earliest) * (job.phase - 0.5)
        job.fresh = False
        job.place = job.line.place(job)

    def _land(self, job: _Job) -> _Beat | None:
        beat = job.asked_by if job.flying else None
        if beat:
            beat.flying -= 1
        job.flying = False
        return beat

    def _promise(self, job: _Job, at: float) -> None:
        job.at = at
        heappush(self._promises, (at, next(self._ties), job))

    def _keep(self) -> _Job | None:
        """Keep the first promise, unless it was given to a lone job that is not alone any more."""
        job = heappop(self._promises)[2]
        job.at = inf
        if job.lone and len(self._jobs) > 1:
            self._release(job)
            return None
        job.asked_by = None
        return job

    def _release(self, job: _Job) -> None:
        """Leave a job to the beats."""
        job.lone, job.at = False, inf
        job.line.patrol.enqueue(job)

    def _promised(self) -> float:
        """When the first promise is due; lets go of those that were overtaken."""
        while self._promises and self._promises[0][0] != self._promises[0][2].at:
            heappop(self._promises)
        return self._promises[0][0] if self._promises else inf

    def _turn(self) -> tuple[float, _Beat | None]:
        """When the next beat has a turn, and which. There are two for each poke_interval."""
        return min(((beat.when(), beat) for beat in self._beats), key=itemgetter(0), default=(inf, None))
