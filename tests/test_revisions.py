"""The revisions of MCP and the era of a message."""

from __future__ import annotations

import pytest

from gateway.wire.envelope import Message, decode
from gateway.wire.revisions import (
    LEGACY,
    MODERN,
    VERSION_CLAIM,
    allowsBatches,
    claimedVersion,
    opensAtOnce,
    versionIsTolerable,
)

CLAIM = b'"_meta":{"%b":"2026-07-28"}' % VERSION_CLAIM.encode()


def _message(rest: bytes) -> Message:
    message = decode(b'{"jsonrpc":"2.0",' + rest + b"}")
    assert isinstance(message, Message)
    return message


def test_theRevisionsNewestFirst() -> None:
    assert list(LEGACY) == sorted(LEGACY, reverse=True)
    assert not set(LEGACY) & set(MODERN)


def test_aClaimInTheBodyIsModern() -> None:
    request = _message(b'"id":1,"method":"tools/list","params":{' + CLAIM + b"}")
    assert claimedVersion(request) == "2026-07-28"
    assert claimedVersion(request, "2025-06-18") == "2026-07-28"
    unknown = _message(
        b'"id":1,"method":"x","params":{"_meta":{"%b":"2099-01-01"}}' % VERSION_CLAIM.encode()
    )
    assert claimedVersion(unknown) == "2099-01-01"


def test_aClaimThatIsHiddenByEscapesIsFound() -> None:
    hidden = CLAIM.replace(b"_meta", b"\\u005fmeta").replace(b"io.", b"\\u0069o.")
    request = _message(b'"id":1,"method":"x","params":{' + hidden + b"}")
    assert claimedVersion(request) == "2026-07-28"


@pytest.mark.parametrize("claim", [b"1", b"null", b"{}", b'"\\ud800"'])
def test_aClaimThatIsNoTextIsModernButNoVersion(claim: bytes) -> None:
    request = _message(
        b'"id":1,"method":"x","params":{"_meta":{"%b":%b}}' % (VERSION_CLAIM.encode(), claim)
    )
    assert claimedVersion(request) == ""


@pytest.mark.parametrize(
    "params",
    [
        b"",
        b',"params":{}',
        b',"params":[]',
        b',"params":{"_meta":{}}',
        b',"params":{"_meta":5}',
        b',"params":{"arguments":{' + CLAIM + b"}}",
        b"," + CLAIM,
    ],
)
def test_withoutAClaimARequestIsLegacy(params: bytes) -> None:
    request = _message(b'"id":1,"method":"tools/call"' + params)
    assert claimedVersion(request) is None
    assert claimedVersion(request, "2026-07-28") is None


def test_aNotificationIsModernByItsHeader() -> None:
    notification = _message(b'"method":"notifications/cancelled"')
    assert claimedVersion(notification, "2026-07-28") == "2026-07-28"
    assert claimedVersion(notification, "2025-06-18") is None
    assert claimedVersion(notification, "2099-01-01") is None
    assert claimedVersion(notification) is None


def test_aResponseHasNoEra() -> None:
    assert claimedVersion(_message(b'"id":1,"result":{' + CLAIM + b"}"), "2026-07-28") is None


@pytest.mark.parametrize("negotiated", LEGACY)
def test_knownAndNegotiatedVersionsAreTolerated(negotiated: str) -> None:
    assert versionIsTolerable(None, negotiated)
    for known in LEGACY:
        assert versionIsTolerable(known, negotiated)
    for unknown in ("", "2099-01-01", "2025-06-18 ", "latest"):
        assert not versionIsTolerable(unknown, negotiated)


def test_aVersionOnlyTheSessionKnowsIsTolerated() -> None:
    assert versionIsTolerable("DRAFT-2025", "DRAFT-2025")


def test_whatDiffersBetweenRevisions() -> None:
    assert [revision for revision in LEGACY + MODERN if allowsBatches(revision)] == ["2025-03-26"]
    assert [revision for revision in LEGACY + MODERN if opensAtOnce(revision)] == ["2025-11-25"]
