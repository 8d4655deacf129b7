"""A multi-transport gateway for MCP, the Model Context Protocol, on Twisted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
    from twisted.web.server import Site

    from gateway.guard.limits import Limits
    from gateway.observe.observer import IObserver

__version__ = "0.1.0"

__all__ = ["__version__", "listen"]


def listen(
    endpoint: IStreamServerEndpoint,
    site: Site,
    *,
    limits: Limits | None = None,
    observer: IObserver | None = None,
) -> Deferred[IListeningPort]:
    """
    Serve a Site of your own behind the gateway's HTTP parser: strict where twisted.web is lenient,
    with its bounds and time-outs, for whatever resources the Site has.

    endpoint: where to listen. limits: the defaults of `Limits` without. observer: hears of bounds
    that are reached and requests that are refused.
    Fires with the port, whose `stopListening` ends the listening and leaves open connections to
    end by themselves; fails with CannotListenError.
    """
    from gateway.clock import MonotonicClock
    from gateway.doors.listener import Listener
    from gateway.guard.limits import Limits
    from gateway.observe.observer import NullObserver

    bounds = limits or Limits()
    listener = Listener(
        site,
        bounds,
        MonotonicClock(site.reactor),
        observer or NullObserver(),
        maxBody=bounds.max_body,
    )
    return listener.listen(endpoint)
