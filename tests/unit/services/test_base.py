# SPDX-License-Identifier: Apache-2.0

"""What both services have in common: reading anything, classifying every status, quoting with care."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from airflow_provider_distribute.exceptions import (
    AccessDenied,
    InvalidRequest,
    JobNotFound,
    NotAccepted,
    OutcomeUnknown,
    RequestRefused,
    ServiceError,
    Unavailable,
)
from airflow_provider_distribute.models import ChatRequest, JobState
from airflow_provider_distribute.services import SERVICES
from airflow_provider_distribute.services.base import Call
from airflow_provider_distribute.services.reading import (
    DEEPEST,
    QUOTED_CHARACTERS,
    Unreadable,
    completion_fields,
    instant,
    parse_object,
    reset_of,
    retry_after_of,
    same_word,
    usable_job_id,
)
from tests.unit.contracts import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_distribute.services import Service
    from tests.unit.contracts import Contract

RETRY = {"Retry-After": "7"}
FOR_EACH_SERVICE = st.sampled_from(sorted(SERVICES.values(), key=lambda service: service.name))


def answer(
    status: int = 200,
    content: bytes | str = b"",
    *,
    json: Any = None,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Return an answer to a request that carried the key."""
    request = httpx.Request("POST", "https://host/path", headers={"Authorization": f"Bearer {KEY}"})
    if json is not None:
        return httpx.Response(status, json=json, headers=headers, request=request)
    return httpx.Response(status, content=content, headers=headers, request=request)


# JSON of every kind, some of it shaped like an answer of one of the services.
SOME_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["2025-06-04T18:22:42Z", "COMPLETED", "ERROR", "Success", "Failed", "In Progress"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def some_object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects that may have these fields, of the given kind or of any."""
    return st.fixed_dictionaries({}, optional={name: kind | SOME_JSON for name, kind in fields.items()})


SOME_ERROR = some_object(message=SOME_JSON)
SOME_CHOICES = st.lists(
    some_object(message=some_object(content=SOME_JSON, tool_calls=SOME_JSON), finish_reason=SOME_JSON),
    max_size=2,
)
SOME_COMPLETION = {
    "created": SOME_JSON,
    "model": SOME_JSON,
    "usage": SOME_JSON,
    "choices": SOME_CHOICES,
    "error": SOME_ERROR,
}
SOME_ANSWER = SOME_JSON | some_object(
    id=SOME_JSON,
    status=SOME_JSON,
    state=SOME_JSON,
    stateMessage=SOME_JSON,
    finished=SOME_JSON,
    finishedAt=SOME_JSON,
    request=some_object(model=SOME_JSON),
    response=some_object(**SOME_COMPLETION),
    **SOME_COMPLETION,
)
SOME_BYTES = (
    st.binary()
    | SOME_ANSWER.map(lambda value: json.dumps(value).encode())
    | SOME_ANSWER.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    | SOME_ANSWER.map(lambda value: json.dumps(value).encode("utf-16"))
    | SOME_ANSWER.map(lambda value: json.dumps(value).encode()[:-1])
)


class TestClassification:
    """What each status means, for a submission and for a look."""

    @pytest.mark.parametrize(
        ("status", "headers", "kind"),
        [
            (301, {}, RequestRefused),
            (400, {}, RequestRefused),
            (401, {}, AccessDenied),
            (402, {}, AccessDenied),
            (403, {}, AccessDenied),
            (404, {}, RequestRefused),
            (405, {}, RequestRefused),
            (408, {}, OutcomeUnknown),
            (409, {}, RequestRefused),
            (413, {}, RequestRefused),
            (415, {}, RequestRefused),
            (418, {}, RequestRefused),
            (422, {}, RequestRefused),
            (425, {}, NotAccepted),
            (429, {}, NotAccepted),
            (429, RETRY, NotAccepted),
            (500, {}, OutcomeUnknown),
            (500, RETRY, OutcomeUnknown),
            (501, {}, OutcomeUnknown),
            (502, {}, OutcomeUnknown),
            (503, {}, OutcomeUnknown),
            (503, {"Retry-After": "soon"}, OutcomeUnknown),
            (503, RETRY, NotAccepted),
            (504, {}, OutcomeUnknown),
            (520, {}, OutcomeUnknown),
            (599, {}, OutcomeUnknown),
        ],
    )
    def test_answers_to_a_submission(
        self, service: Service, status: int, headers: dict[str, str], kind: type[ServiceError]
    ) -> None:
        """Each status has one meaning for money: refused, not accepted, denied, or unknown."""
        with pytest.raises(ServiceError) as caught:
            service.read_ticket(answer(status, headers=headers))
        assert type(caught.value) is kind
        assert caught.value.status == status
        assert caught.value.service == service.name
        assert caught.value.throttled is (kind is NotAccepted)
        assert caught.value.retry_after == (7.0 if kind is NotAccepted and headers else None)

    @pytest.mark.parametrize(
        ("status", "headers", "kind", "throttled"),
        [
            (302, {}, Unavailable, False),
            (400, {}, RequestRefused, False),
            (401, {}, AccessDenied, False),
            (402, {}, AccessDenied, False),
            (403, {}, AccessDenied, False),
            (404, {}, JobNotFound, False),
            (405, {}, Unavailable, False),
            (408, {}, Unavailable, False),
            (409, {}, Unavailable, False),
            (410, {}, RequestRefused, False),
            (422, {}, RequestRefused, False),
            (425, {}, Unavailable, False),
            (429, {}, Unavailable, True),
            (429, RETRY, Unavailable, True),
            (500, {}, Unavailable, False),
            (502, {}, Unavailable, False),
            (503, {}, Unavailable, False),
            (503, RETRY, Unavailable, True),
            (504, {}, Unavailable, False),
            (599, {}, Unavailable, False),
        ],
    )
    def test_answers_to_a_look(
        self,
        service: Service,
        status: int,
        headers: dict[str, str],
        kind: type[ServiceError],
        throttled: bool,
    ) -> None:
        """A look only ever fails for good on what stays as it is; the rest is asked again."""
        with pytest.raises(ServiceError) as caught:
            service.read_job("j1", answer(status, headers=headers, json={"message": "no"}))
        assert type(caught.value) is kind
        assert caught.value.status == status
        assert caught.value.throttled is throttled
        assert caught.value.retry_after == (7.0 if headers else None)

    @pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
    @pytest.mark.parametrize("page", [b"<h1>Bad Request</h1>", b"", b"[]"])
    def test_a_gateways_word_ends_no_job(self, service: Service, status: int, page: bytes) -> None:
        """A proxy that is being deployed answers with any status, and every job that waits is looked at."""
        with pytest.raises(Unavailable, match=f"answered {status}"):
            service.read_job("j1", answer(status, page))

    @given(service=FOR_EACH_SERVICE, status=st.integers(300, 999), retry_after=st.none() | st.text())
    def test_every_status_has_a_class(self, service: Service, status: int, retry_after: str | None) -> None:
        """No status, however odd, ends in anything but a member of the tree."""
        headers = (
            {} if retry_after is None else {"Retry-After": retry_after.encode("ascii", "replace").decode()}
        )
        for read in (service.read_ticket, lambda given: service.read_job("j", given)):
            with pytest.raises(ServiceError):
                read(answer(status, headers=headers))

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_denied_says_what_to_do(self, service: Service, status: int) -> None:
        """The person on call reads what to repair, and that the task is then to be cleared."""
        for error in (service.submit_error(answer(status)), service.look_error("j", answer(status))):
            assert isinstance(error, AccessDenied)
            assert service.title in str(error)
            assert str(error).endswith("then clear the task")

    def test_what_follows_is_said(self, service: Service) -> None:
        """Every failed submission says whether it may be billed."""
        assert "may have been accepted, and then it runs and is billed" in str(
            service.submit_error(answer(500))
        )
        assert "not accepted and is not billed" in str(service.submit_error(answer(429)))
        assert "refused and is not billed" in str(service.submit_error(answer(400)))
        assert "Nothing was sent and nothing is billed" in str(service.unreached("ConnectError"))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"accepted",
            b"[]",
            b"null",
            b'{"id": null}',
            b'{"id": 5}',
            b'{"id": ""}',
            b'{"id": "  "}',
            b'{"id": ".."}',
            b'{"id": "a\\nb"}',
            b'{"id": "a\\u0000b"}',
            b'{"id": "a\xffb"}',
            b'{"choices": []}',
            json.dumps({"id": "x" * 513}).encode(),
            b"[" * 100_000,
        ],
        ids=lambda content: content[:20].decode("latin-1"),
    )
    def test_an_unreadable_acceptance_is_an_unknown_outcome(self, service: Service, content: bytes) -> None:
        """A 2xx without a usable id means that something was accepted which nobody can ask for."""
        with pytest.raises(OutcomeUnknown, match="answered 200 with"):
            service.read_ticket(answer(200, content))

    @pytest.mark.parametrize("status", [200, 201, 202, 299])
    def test_any_2xx_is_an_acceptance(self, contract: Contract, status: int) -> None:
        """The status of the acknowledgement is not documented."""
        ticket = contract.ticket("j1")
        assert contract.service.read_ticket(answer(status, ticket.content)) == "j1"

    @pytest.mark.parametrize(
        "content", [b"", b"<html>", b"[]", b'"done"', b"[" * 100_000, b'{"a":' * 600 + b"1" + b"}" * 600]
    )
    def test_an_unreadable_look_is_asked_again(self, service: Service, content: bytes) -> None:
        """A gateway's page in place of the answer says nothing about the job."""
        with pytest.raises(Unavailable, match="answered 200 with"):
            service.read_job("j1", answer(200, content))

    def test_a_withheld_job_is_failed_with_the_reason(self, service: Service) -> None:
        """What the service refuses to show has ended, for us."""
        refused = service.look_error("j1", answer(410, json={"message": "gone"}))
        assert isinstance(refused, RequestRefused)
        job = service.withheld("j1", refused)
        assert (job.done, job.succeeded, job.lost) == (True, False, False)
        assert '"gone"' in job.reason


class TestQuoting:
    """The service's own words in our errors."""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('{"error": {"message": "m1", "code": 5}, "message": "m2"}', "m1"),
            ('{"error": "m3"}', "m3"),
            ('{"message": "m2", "detail": "m4"}', "m2"),
            ('{"detail": "m4"}', "m4"),
            ('{"error": {"message": " "}, "detail": "m4"}', "m4"),
            ("<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
            ("[1, 2]", "[1, 2]"),
            ("two\n  lines\t here", "two lines here"),
            (
                '{"detail": [{"loc": ["n", 0], "msg": "m5", "input": "a prompt"}, {"msg": "m6"}]}',
                "n.0: m5; m6",
            ),
            ('{"errors": [{"code": 7}, {"msg": 1}]}', '[{"code":7},{"msg":1}]'),
            ('{"errors": ["m6"]}', '["m6"]'),
            ('{"error": {"code": "m7"}}', '{"code":"m7"}'),
            ('{"reason": "m8"}', '{"reason":"m8"}'),
        ],
    )
    def test_the_services_words_are_found(self, service: Service, content: str, words: str) -> None:
        """Wherever they stand in an error body, they are quoted on one line."""
        assert f'answered 400: "{words}". ' in str(service.submit_error(answer(400, content)))

    @pytest.mark.parametrize("content", ["", "   ", "{}"])
    def test_no_words_are_no_quotation(self, service: Service, content: str) -> None:
        """Nothing there: the status stands alone."""
        assert "answered 400. " in str(service.submit_error(answer(400, content)))

    @pytest.mark.parametrize("form", ["{}", '{{"message": "{}"}}'])
    def test_long_words_are_cut(self, service: Service, form: str) -> None:
        """500 characters of them, the cut shown, however long the body is."""
        text = str(service.submit_error(answer(400, form.format("word " * 500_000))))
        quotation = text.split('"')[1]
        assert len(quotation) == QUOTED_CHARACTERS
        assert quotation.endswith("…")
        assert "\n" not in text

    @pytest.mark.parametrize("form", ["no key {} here", '{{"message": "no key {} here"}}'])
    def test_an_echoed_key_is_blotted_out(self, service: Service, form: str) -> None:
        """Some gateways repeat the key in their error: it stays out of ours."""
        for error in (
            service.submit_error(answer(401, form.format(KEY))),
            service.look_error("j", answer(500, form.format(f"Bearer {KEY}"))),
        ):
            assert KEY not in str(error)
            assert "***" in str(error)

    def test_a_key_at_the_cut_is_blotted_out(self, service: Service) -> None:
        """Cutting comes after blotting out, so no part of the key is left at the end."""
        text = str(service.submit_error(answer(400, "x" * (QUOTED_CHARACTERS - 10) + KEY)))
        assert KEY[:8] not in text

    @pytest.mark.parametrize("charset", ["zlib", "undefined", "rot13", "hex", "utf-16", "nonsense"])
    def test_a_lying_charset_harms_nobody(self, service: Service, charset: str) -> None:
        """Bodies are read as UTF-8, whatever the header says, and bytes that are none are shown as such."""
        headers = {"Content-Type": f"text/plain; charset={charset}"}
        error = service.submit_error(answer(400, b"caf\xc3\xa9 \xff", headers=headers))
        assert '"café \ufffd"' in str(error)

    def test_nothing_is_blotted_out_without_a_key(self, service: Service) -> None:
        """An answer to a request without the header is quoted as it is."""
        bare = httpx.Response(400, content=b"plain words", request=httpx.Request("GET", "https://host/"))
        assert '"plain words"' in str(service.submit_error(bare))

    @pytest.mark.parametrize("status", [301, 308, 404, 405])
    def test_what_a_wrong_host_answers_is_said_to_be_that(self, service: Service, status: int) -> None:
        """A host given with the path twice is the usual slip: the error shows what was asked."""
        told = str(service.submit_error(answer(status)))
        assert "Change the request, or correct the connection's host, which led to https://host/path" in told

    def test_a_key_in_a_jobs_own_words_is_blotted_out(self, service: Service) -> None:
        """A job's reason goes into errors, logs and results."""
        words = {"status": "ERROR", "state": "Failed", "message": f"{KEY} expired", "stateMessage": KEY}
        job = service.read_job("j", answer(200, json=words))
        assert KEY not in job.reason
        assert "***" in job.reason

    def test_a_short_key_is_no_secret(self, service: Service) -> None:
        """What an emulator's key may be would turn up in answers by chance."""
        request = httpx.Request("GET", "https://host/", headers={"Authorization": "Bearer test"})
        told = service.submit_error(httpx.Response(400, content=b"the test failed", request=request))
        assert '"the test failed"' in str(told)


class TestRateLimitHeaders:
    """What a gateway says of its limits when it gives no ``Retry-After``."""

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"reset": "7"}, 7.0),
            ({"reset": "1.5"}, 1.5),
            ({"reset-requests": "6m0s"}, 360.0),
            ({"reset-requests": "1h2m3.5s"}, 3723.5),
            ({"reset-tokens": "20ms"}, 0.02),
            ({"reset-requests": "9s", "remaining-requests": "0", "reset-tokens": "60s"}, 60.0),
            ({"reset-requests": "9s", "remaining-tokens": "5", "reset-tokens": "60s"}, 9.0),
            ({"reset": "1000000000"}, 0.0),
            ({"reset": ""}, None),
            ({"reset": "soon"}, None),
            ({"reset": "-7"}, None),
            ({"reset": "7", "remaining": "3"}, None),
            ({}, None),
        ],
    )
    def test_the_reset_of_a_used_up_limit_is_waited_for(
        self, service: Service, headers: dict[str, str], seconds: float | None
    ) -> None:
        """Alike on a submission and on a look."""
        refused = answer(429, headers={f"X-RateLimit-{name}": value for name, value in headers.items()})
        assert service.submit_error(refused).retry_after == pytest.approx(seconds)
        assert service.look_error("j", refused).retry_after == pytest.approx(seconds)

    def test_retry_after_counts_more(self, service: Service) -> None:
        """It is meant for this very request."""
        refused = answer(429, headers={"Retry-After": "3", "X-RateLimit-Reset": "90"})
        assert service.submit_error(refused).retry_after == 3.0

    def test_a_limit_does_not_make_a_503_a_refusal(self, service: Service) -> None:
        """Only ``Retry-After`` says that the request was not taken."""
        assert isinstance(
            service.submit_error(answer(503, headers={"X-RateLimit-Reset": "9"})), OutcomeUnknown
        )

    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
    def test_never_raises(self, header: str) -> None:
        """No header makes the reader raise, or wait for ever."""
        seconds = reset_of(answer(429, headers={"X-RateLimit-Reset": header}))
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


class TestRetryAfter:
    """How long the service asks to be left alone."""

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("7", 7.0),
            (" 7 ", 7.0),
            ("0", 0.0),
            ("1.5", 1.5),
            ("-3", 0.0),
            ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
            ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
            ("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
            ("Wed Oct 21 07:28:30 2026", 30.0),
            ("soon", None),
            ("", None),
            ("nan", None),
            ("inf", None),
            ("1e999", None),
            ("Wed, 99 Oct 2026 07:28:30 GMT", None),
            ("Wed, 21 Oct 2026 07:28:30 +99999999999999999999", None),
        ],
    )
    def test_seconds_dates_and_garbage(self, header: str, seconds: float | None) -> None:
        """Seconds, or a date measured from the answer's own ``Date``; what cannot be read was not said."""
        headers = {"Retry-After": header, "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}
        assert retry_after_of(answer(429, headers=headers)) == seconds

    def test_a_date_without_a_date(self) -> None:
        """An answer without ``Date`` is measured from our own clock."""
        past = {"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}
        assert retry_after_of(answer(429, headers=past)) == 0.0

    def test_no_header(self) -> None:
        """``None`` is different from zero: it was not said."""
        assert retry_after_of(answer(429)) is None

    @given(
        st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.text(st.characters(max_codepoint=126))
    )
    @hypothesis_settings(max_examples=300)
    def test_never_raises(self, header: str, date: str) -> None:
        """No header makes the reader raise, or wait for ever."""
        seconds = retry_after_of(answer(429, headers={"Retry-After": header, "Date": date}))
        assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


class TestReading:
    """Bodies of any shape."""

    @pytest.mark.parametrize(
        ("content", "value"),
        [
            (
                b'{"a": NaN, "b": Infinity, "c": 1e999, "d": -1e999}',
                {"a": None, "b": None, "c": None, "d": None},
            ),
            (b'{"a": 1.5, "b": 12345678901234567890}', {"a": 1.5, "b": 12345678901234567890}),
            (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
            (b'{"a": "\\u0000\\ud800"}', {"a": "\ufffd\ufffd"}),
            (b'{"\\u0000": [{"\\udfff": "\\ud83d\\ude00"}]}', {"\ufffd": [{"\ufffd": "\U0001f600"}]}),
            (b'{"a": "\xed\xa0\x80"}', {"a": "\ufffd\ufffd\ufffd"}),
            (b'{"a": "cut \xe2\x82"}', {"a": "cut \ufffd"}),
            (b'{"a": [' + b"[" * 50 + b"]" * 50 + b"]}", None),
        ],
    )
    def test_what_can_be_read_can_be_stored(self, content: bytes, value: object) -> None:
        """Numbers are finite and text is Unicode without NUL: databases refuse anything else."""
        read = parse_object(content)
        assert value is None or read == value
        json.dumps(read, allow_nan=False, ensure_ascii=False).encode()

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            (rb'{"a": "\ud83d\ude00"}', "\U0001f600"),
            (rb'{"a": "\ude00\ud83d"}', "\ufffd\ufffd"),
            (rb'{"a": "\\ud83d\ude00"}', "\\ud83d\ufffd"),
            (rb'{"a": "\u0000"}', "\ufffd"),
            (rb'{"a": "\\u0000"}', "\\u0000"),
        ],
    )
    def test_escapes(self, text: bytes, read: str) -> None:
        """Half a character and a NUL are replaced; whole ones, and backslashes that escape nothing, stay."""
        assert parse_object(text) == {"a": read}

    def test_depth_is_bounded(self) -> None:
        """Whoever stores or prints a result walks it recursively: no answer may exhaust the stack."""
        at_the_limit = b'{"a": ' + b"[" * DEEPEST + b"]" * DEEPEST + b"}"
        with pytest.raises(Unreadable, match="nested more than 100 levels"):
            parse_object(at_the_limit.replace(b"[]", b"[[]]"))
        parse_object(at_the_limit)

    def test_wide_is_not_deep(self) -> None:
        """Many brackets side by side are an ordinary answer."""
        assert len(parse_object(json.dumps({"a": [[]] * 1000}).encode())["a"]) == 1000

    @pytest.mark.parametrize(
        ("value", "read"),
        [
            (1749061362, "2025-06-04T18:22:42+00:00"),
            (1749061362809, "2025-06-04T18:22:42.809000+00:00"),
            (1749061362.5, "2025-06-04T18:22:42.500000+00:00"),
            ("1749061362", "2025-06-04T18:22:42+00:00"),
            ("1749061362809", "2025-06-04T18:22:42.809000+00:00"),
            ("2025-06-04T18:22:42.809Z", "2025-06-04T18:22:42.809000+00:00"),
            ("2025-06-04T20:22:42+02:00", "2025-06-04T18:22:42+00:00"),
            ("2025-06-04T18:22:42", "2025-06-04T18:22:42+00:00"),
            (" 2025-06-04 ", "2025-06-04T00:00:00+00:00"),
            (0, "1970-01-01T00:00:00+00:00"),
            ("yesterday", None),
            ("", None),
            ("0001-01-01T00:00:00+23:59", None),
            (None, None),
            (True, None),
            ([], None),
            (10**400, None),
            (-(10**400), None),
            (1e300, None),
        ],
    )
    def test_instants(self, value: object, read: str | None) -> None:
        """Seconds, milliseconds and ISO-8601 are one instant in UTC; anything else is none."""
        found = instant(value)
        assert (found.isoformat() if found else None) == read

    @given(st.datetimes(datetime(1975, 1, 1), datetime(2099, 1, 1)))
    def test_seconds_and_milliseconds_agree(self, when: datetime) -> None:
        """From 1973 on, no time is taken for the other unit."""
        seconds = int(when.replace(tzinfo=UTC).timestamp())
        assert instant(seconds) == instant(seconds * 1000) == datetime.fromtimestamp(seconds, UTC)

    @pytest.mark.parametrize("word", ["In Progress", "in_progress", " IN-PROGRESS ", "in  progress"])
    def test_status_words_are_folded(self, word: str) -> None:
        """Case, spaces, hyphens and underscores make no difference."""
        assert same_word(word) == "in progress"

    @pytest.mark.parametrize(
        ("completion", "fields"),
        [
            ({}, {"content": None, "choices": (), "finish_reason": None, "tool_calls": (), "usage": None}),
            (
                {"choices": None, "usage": None, "model": None},
                {"choices": (), "content": None, "model": None},
            ),
            ({"choices": []}, {"choices": (), "content": None}),
            ({"choices": "text", "usage": 5, "model": 5}, {"choices": (), "usage": None, "model": None}),
            ({"choices": [None, 5, {"message": {"content": "x"}}]}, {"content": "x"}),
            ({"choices": [{}]}, {"choices": ({},), "content": None, "finish_reason": None}),
            ({"choices": [{"message": None}]}, {"content": None, "tool_calls": ()}),
            ({"choices": [{"message": {"content": ""}}]}, {"content": ""}),
            ({"choices": [{"message": {"content": None, "tool_calls": None}}]}, {"content": None}),
            (
                {"choices": [{"message": {"content": 5, "tool_calls": {}}}]},
                {"content": None, "tool_calls": ()},
            ),
            (
                {
                    "choices": [
                        {"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}, {"x": 1}, 5]}}
                    ]
                },
                {"content": "ab"},
            ),
            ({"choices": [{"message": {"content": [{"type": "image"}]}}]}, {"content": ""}),
            ({"choices": [{"message": {"content": []}}]}, {"content": None}),
            ({"choices": [{"finish_reason": 5}]}, {"finish_reason": None}),
            (
                {"choices": [{"finish_reason": "length"}, {}]},
                {"finish_reason": "length", "choices": ({"finish_reason": "length"}, {})},
            ),
            ({"choices": [{"message": {"tool_calls": [{"id": "c"}, None]}}]}, {"tool_calls": ({"id": "c"},)}),
            (
                {"usage": {"total_tokens": "many", "extra": None}},
                {"usage": {"total_tokens": "many", "extra": None}},
            ),
            ({"unheard": "of"}, {"choices": ()}),
        ],
    )
    def test_completions_of_any_shape(self, completion: dict[str, Any], fields: dict[str, Any]) -> None:
        """Null, missing, extra and wrongly typed fields are read as not there."""
        read = completion_fields(completion)
        assert {name: read[name] for name in fields} == fields

    @given(service=FOR_EACH_SERVICE, content=SOME_BYTES, status=st.integers(200, 599))
    @hypothesis_settings(max_examples=200)
    @example(service=SERVICES["distribute"], content=b'{"status": "COMPLETED", "created": 1e400}', status=200)
    @example(service=SERVICES["inference_net"], content=b'{"state": "Failed", "finishedAt": {}}', status=200)
    @example(service=SERVICES["distribute"], content=b'{"status":"\xed\xa0\x80\\u0000"}', status=200)
    @example(service=SERVICES["distribute"], content=b'{"a":' * 5000, status=400)
    def test_reading_raises_nothing_but_service_errors(
        self, service: Service, content: bytes, status: int
    ) -> None:
        """Whatever bytes come, a look ends in a job that can be stored, or in an error of the tree."""
        try:
            job = service.read_job("j1", answer(status, content))
        except ServiceError as error:
            str(error).encode()
        else:
            json.dumps(job.result(), allow_nan=False, ensure_ascii=False).encode()
            assert job.job_id == "j1"
            assert "\x00" not in job.status
        try:
            job_id = service.read_ticket(answer(status, content))
        except ServiceError:
            return
        assert usable_job_id(job_id)


class TestJobIds:
    """Which text can be a job id."""

    @pytest.mark.parametrize(
        "job_id",
        ["", " ", ".", "..", " .. ", "a\nb", "a\x00", "a\ud800", "a\u2028b", "x" * 513, "\ufffd", None, 5],
    )
    def test_what_is_no_job_id(self, job_id: Any) -> None:
        """Text that changes a path, breaks a log line or fits no column cannot be a job id."""
        assert not usable_job_id(job_id)

    @pytest.mark.parametrize(
        "job_id", ["a", "N2mZQjrvh-k_m8nMMN7Jn", "...", "a/b", "a b", "ключ", "%2e%2e", "x" * 512]
    )
    def test_ids_are_opaque(self, job_id: str) -> None:
        """Anything else can be one."""
        assert usable_job_id(job_id)

    @pytest.mark.parametrize("job_id", ["..", "", "a\nb", "\ud800"])
    def test_nobody_is_asked_about_it(self, contract: Contract, job_id: str) -> None:
        """A look at such an id is refused before it is sent, and says so on one line."""
        with pytest.raises(RequestRefused, match="is no job id: nothing was asked") as caught:
            contract.service.describe_look(job_id, contract.settings())
        str(caught.value).encode()
        assert "\n" not in str(caught.value)


class TestRequests:
    """What both services do with a request."""

    def request(self, **fields: Any) -> ChatRequest:
        """Return a request for nothing in particular."""
        return ChatRequest.parse({"prompt": "x", **fields})

    def test_the_model_is_the_requests_or_the_connections(self, contract: Contract) -> None:
        """A request that names none gets the connection's."""
        settings = contract.settings(model="theirs")
        describe = contract.service.describe_submit
        for fields, model in (({}, "theirs"), ({"model": "mine"}, "mine")):
            body = describe(self.request(**fields), settings).body
            assert body is not None
            assert body["model"] == model

    def test_no_model_at_all(self, contract: Contract) -> None:
        """Without a model nothing is sent."""
        with pytest.raises(InvalidRequest, match="model: neither the request nor the connection names one"):
            contract.service.describe_submit(self.request(), contract.settings(model=None))

    def test_fields_with_an_argument_of_their_own(self, contract: Contract) -> None:
        """``model``, ``messages`` and ``metadata`` are not smuggled in as params, by no setting."""
        params = {"model": "m", "messages": [], "metadata": {}}
        for settings in (contract.settings(), contract.settings(allow_undocumented_params=True)):
            with pytest.raises(InvalidRequest) as caught:
                contract.service.describe_submit(self.request(params=params), settings)
            for name in params:
                assert f"params.{name}: has its own argument" in str(caught.value)
            assert "allow_undocumented_params" not in str(caught.value)

    def test_a_checked_request_holds_what_the_author_asks(self, contract: Contract) -> None:
        """With the model, and without what is only added when it is sent, so that it can be kept for days."""
        request = self.request(params={"top_p": 1, "n": None}, metadata={"k": "v"})
        settings = contract.settings(model="theirs")
        checked = contract.service.checked(request, settings)
        assert checked == request.model_copy(update={"model": "theirs", "params": {"top_p": 1.0}})
        assert contract.service.checked(checked, settings) == checked
        assert contract.service.describe_submit(checked, settings) == contract.service.describe_submit(
            request, settings
        )

    def test_several_problems_at_once(self, contract: Contract) -> None:
        """Everything wrong with a request is said in one message, with the way out at its end."""
        request = self.request(params={"n": "many", "stream": True})
        with pytest.raises(InvalidRequest) as caught:
            contract.service.describe_submit(request, contract.settings(model=None))
        text = str(caught.value)
        for part in (
            "model: neither",
            "params.n: ",
            "params.stream: ",
            f"{contract.service.title} documents",
        ):
            assert part in text
        assert "allow_undocumented_params in the connection's extra" in text

    def test_a_parameter_of_none_is_left_out(self, contract: Contract) -> None:
        """``None`` in ``request_params`` means the service's default, also where null is not documented."""
        call = contract.service.describe_submit(
            self.request(params={"n": None, "top_p": 0.5}), contract.settings()
        )
        assert call.body is not None
        assert "n" not in call.body
        assert call.body["top_p"] == 0.5

    def test_null_inside_a_parameter_stays(self, contract: Contract) -> None:
        """What is inside a tool's schema is the author's."""
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]
        call = contract.service.describe_submit(self.request(params={"tools": tools}), contract.settings())
        assert call.body is not None
        assert call.body["tools"] == tools

    @pytest.mark.parametrize(
        "value", [math.nan, math.inf, datetime(2025, 1, 1, tzinfo=UTC), {1, 2}, "\ud800", b"x"]
    )
    def test_what_is_no_json_is_refused(self, contract: Contract, value: object) -> None:
        """A value that no JSON body can hold is the request's fault, found before anything is sent."""
        settings = contract.settings(allow_undocumented_params=True)
        with pytest.raises(InvalidRequest, match="it cannot be written as JSON: "):
            contract.service.describe_submit(self.request(params={"odd": value}), settings)

    def test_metadata_travels(self, contract: Contract) -> None:
        """Both services take metadata; without any the field is left out."""
        described = contract.service.describe_submit(self.request(metadata={"row": "7"}), contract.settings())
        assert described.body is not None
        assert described.body["metadata"] == {"row": "7"}
        bare = contract.service.describe_submit(self.request(), contract.settings()).body
        assert bare is not None
        assert "metadata" not in bare

    def test_unknown_words_are_pending(self, contract: Contract) -> None:
        """A status nobody has heard of is kept and waited out."""
        job = contract.service.read_job("j", answer(200, contract.look("REINCARNATED").content))
        assert job.state is JobState.PENDING
        assert job.status == "REINCARNATED"

    @pytest.mark.parametrize("word", [None, 5, "", "  ", [], {}])
    def test_no_word_is_pending(self, contract: Contract, word: object) -> None:
        """A look without a status word shows as such."""
        job = contract.service.read_job(
            "j", answer(200, contract.look("pending", **{contract.word_field: word}).content)
        )
        assert (job.state, job.status) == (JobState.PENDING, "(none)")

    @pytest.mark.parametrize(
        "change", [str.lower, str.upper, lambda word: f" {word} ", lambda word: word.replace("_", " ")]
    )
    def test_words_are_read_in_any_spelling(self, contract: Contract, change: Any) -> None:
        """Every documented word, spelled as another generation of the documentation might."""
        for state, word in contract.words.items():
            job = contract.service.read_job("j", answer(200, contract.look(change(word)).content))
            assert job.state == state


def test_a_described_call_does_not_show_its_body() -> None:
    """It holds prompts, and what is shown ends up in a log."""
    assert "secret plans" not in repr(Call("POST", "/path", {"messages": "secret plans"}))
