"""Every refusal has one shape, and a lost session has one answer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.wire import refusals
from gateway.wire.envelope import Kind, Message
from gateway.wire.refusals import Reason, Refusal
from gateway.wire.revisions import LEGACY, MODERN

# A stand-in for each kind of argument that refusals take; `status` has a name of its own.
_ARGUMENTS: dict[str, object] = {
    "str": "why",
    "bytes": b"GET, POST",
    "int": 7,
    "status": 431,
    "bytes | None": b"7",
    "Reason": Reason.TIMEOUT,
    "FailedCall": refusals.callFailed(b"7", Reason.TIMEOUT, "It failed"),
}


def _made(name: str) -> object:
    make: Callable[..., object] = getattr(refusals, name)
    required = [
        parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default is parameter.empty
    ]
    return make(
        *[
            _ARGUMENTS.get(parameter.name, _ARGUMENTS[str(parameter.annotation)])
            for parameter in required
        ]
    )


def _functions() -> list[str]:
    return [name for name in refusals.__all__ if inspect.isfunction(getattr(refusals, name))]


REFUSALS = {name: refusal for name in _functions() if isinstance(refusal := _made(name), Refusal)}

# The wire contract: status and code of each case.
CONTRACT = {
    "atCapacity": (503, -32000),
    "badRequest": (431, -32000),
    "discoverNotServed": (400, -32000),
    "headersDisagree": (400, -32020),
    "invalidParams": (400, -32602),
    "malformedHead": (400, -32000),
    "methodNotAllowed": (405, -32000),
    "modernCallFailed": (504, -32603),
    "noStream": (405, -32000),
    "notAMessage": (400, -32600),
    "notAcceptable": (406, -32000),
    "notAllowedHere": (403, -32000),
    "notAuthenticated": (401, -32000),
    "notFound": (404, -32000),
    "notJSON": (400, -32700),
    "notPermitted": (403, -32000),
    "notServedOverSSE": (400, -32022),
    "queueFull": (503, -32000),
    "sessionNotFound": (404, -32001),
    "sessionRequired": (400, -32000),
    "shuttingDown": (503, -32000),
    "tooLarge": (413, -32000),
    "tooManyConnections": (503, -32000),
    "tooSlow": (408, -32000),
    "unknownServer": (404, -32000),
    "unsupportedMediaType": (415, -32000),
    "unsupportedModernVersion": (400, -32022),
    "unsupportedVersion": (400, -32000),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_statusAndCodeAreTheContracts(name: str) -> None:
    refusal = REFUSALS[name]
    assert (refusal.status, refusal.code) == CONTRACT[name]


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize(
    "id", [None, b"1", b'"1"', b"1.0", b"1e0", b"9007199254740993", b'"\\u00e9"']
)
def test_theShapeIsOneCompactErrorWithTheIDAsSpelledOrNone(name: str, id: bytes | None) -> None:
    refusal = REFUSALS[name]
    body = refusal.body(id)
    prefix = b'{"jsonrpc":"2.0",' + (b"" if id is None else b'"id":' + id + b",") + b'"error":{'
    assert body.startswith(prefix)
    error = json.loads(body)["error"]
    # Claude Code looks for this very substring.
    assert b'"code":%d' % refusal.code in body
    assert error["code"] == refusal.code
    assert error["message"]
    assert set(error) <= {"code", "message", "data"}
    assert b"\n" not in body
    assert refusal.fields()[0] == (b"content-type", b"application/json")
    assert 400 <= refusal.status < 600


def test_32001IsALostSessionAndNothingElse() -> None:
    assert [name for name, refusal in REFUSALS.items() if refusal.code == -32001] == [
        "sessionNotFound"
    ]
    assert (
        REFUSALS["sessionNotFound"].body()
        == b'{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"}}'
    )


def test_theFieldsThatGoWithAStatus() -> None:
    for name, refusal in REFUSALS.items():
        fields = dict(refusal.fields())
        if refusal.status == 405:
            assert fields[b"allow"] == b"GET, POST", name
        if refusal.status == 401:
            assert fields[b"www-authenticate"], name
        if refusal.status == 503:
            assert int(fields[b"retry-after"]) > 0, name


def test_theSupportedVersionsAreNamed() -> None:
    legacy = json.loads(refusals.unsupportedVersion().body())["error"]
    assert all(version in legacy["message"] for version in LEGACY)
    modern = json.loads(refusals.unsupportedModernVersion("2099-01-01").body())["error"]
    assert modern["data"] == {"supported": list(LEGACY), "requested": "2099-01-01"}
    long = json.loads(refusals.unsupportedModernVersion("x" * 10_000).body())["error"]
    assert len(long["data"]["requested"]) < 100
    served = json.loads(refusals.unsupportedModernVersion("2099-01-01", MODERN).body())["error"]
    assert served["data"] == {"supported": list(MODERN), "requested": "2099-01-01"}


MODERN_STATUS = {
    "timeout": 504,
    "cancelled": 503,
    "server_exited": 502,
    "upstream_unreachable": 502,
    "outcome_unknown": 502,
    "bad_answer": 502,
    "overloaded": 503,
    "rate_limited": 503,
    "forbidden": 403,
    "shutting_down": 503,
}


@pytest.mark.parametrize("reason", Reason)
def test_aModernCallThatFailedHasTheSameReasonAndAStatusOfItsOwn(reason: Reason) -> None:
    failed = refusals.callFailed(b"1e0", reason, "It failed", 1.5)
    status, answer = refusals.failedModern(failed)
    assert status == MODERN_STATUS[reason.value]
    assert answer.encode() == (
        b'{"jsonrpc":"2.0","id":1e0,"error":{"code":-32603,"message":"It failed",'
        b'"data":{"reason":"%b","retryAfterMs":1500}}}' % reason.value.encode()
    )
    refusal = refusals.modernCallFailed(reason, "It failed", 5)
    assert (refusal.status, refusal.code) == (status, -32603)
    assert dict(refusal.fields())[b"retry-after"] == b"5"


@pytest.mark.parametrize("reason", Reason)
def test_aCallThatFailedIsAnErrorResponseWithItsReason(reason: Reason) -> None:
    message = refusals.callFailed(b"1e0", reason, "It failed")
    assert isinstance(message, Message)
    assert message.kind is Kind.RESPONSE
    assert message.isError
    assert message.id == b"1e0"
    assert message.encode() == (
        b'{"jsonrpc":"2.0","id":1e0,"error":{"code":-32000,"message":"It failed",'
        b'"data":{"reason":"%b"}}}' % reason.value.encode()
    )


def test_theReasonsAreTheContracts() -> None:
    assert {reason.value for reason in Reason} == {
        "timeout",
        "cancelled",
        "server_exited",
        "upstream_unreachable",
        "outcome_unknown",
        "bad_answer",
        "overloaded",
        "rate_limited",
        "forbidden",
        "shutting_down",
    }


def test_anErrorMessageIsWhatItSays() -> None:
    data: dict[str, Any] = {"a": [1]}
    assert refusals.errorMessage(None, -32601, 'no "x"', data).encode() == (
        b'{"jsonrpc":"2.0","error":{"code":-32601,"message":"no \\"x\\"","data":{"a":[1]}}}'
    )
