# SPDX-License-Identifier: Apache-2.0

"""
What a bulk run has done so far, on object storage, so that a crash at any instant loses nothing that was
paid.

::

    <result_path>/<run directory>/
        requests/<writer>/000001.jsonl …    what is asked, one line for each row, in input order
        journal/00000001.jsonl …            what was intended, accepted, refused, and what to ask again
        rows/<writer>/000001.jsonl …        what came back, one line for each row, as it was seen
        progress.json                       where the run is; overwritten, read by people only
        results.jsonl, manifest.json        the outcome, written last

Every object but the last three is written once, under a new name, and never touched again: object stores can
neither append nor rename over an object. Each line carries a checksum and the last line says how many there
are, so that a torn object is recognised and its whole lines still count. Only an object that was being
written when its writer died may be torn; damage anywhere else is an error.

**Why not one state file, rewritten?** Each write would cost the whole state, and a writer that dies in the
middle takes the state with it. **Why not one object for each request?** 100,000 requests would be 200,000
objects, two round trips before each request, and minutes of listing before each retry. A log of small
objects costs one round trip for up to a window of requests, and replaying it is a pure function.

**Intent before money.** A request is sent only after an object that names its row is written. Of rows
intended and not recorded there are never more than the window, not even when the last object is lost: an
object may promise only as many rows as the objects *before* it leave free. What is intended and not
recorded after a crash is *in doubt*.

**One writer.** Objects are created exclusively and numbered without gaps. A second attempt takes the next
number, and the first one, should it still live, fails at its next write and stops sending. The outcome is
settled in the journal before the results take their place, so that those of an attempt which was overtaken
do not replace the newer one's.

A *ticket* is what a service hands back for a submission. It names the rows it covers: one row for a job of
its own, many for a group or a batch. Whoever reads a look's answer writes one line for each row it answers
for.
"""

from __future__ import annotations
