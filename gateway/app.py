"""The URL map of a gateway, on one screen: a Klein app that hosts the three proxies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from attrs import define
from klein import Klein
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from gateway.doors.resource import ProxyResource
from gateway.proxies.endpoint import StreamableEndpoint
from gateway.proxies.ladder import Ladder
from gateway.proxies.sse import SSEProxy
from gateway.wire import refusals
from gateway.wire.exchange import Exchange, Serve
from gateway.wire.refusals import JSON_TYPE, Refusal

__all__ = ["GatewayApp", "Mount"]


@define(eq=False)
class Mount:
    """The proxies in front of one server."""

    http: StreamableEndpoint
    sse: SSEProxy


@define(eq=False)
class GatewayApp:
    """
    Which path is whose.

    mounts: by server name. default: the server of the short paths, or None.
    ready: whether the gateway takes new sessions.
    """

    ladder: Ladder
    mounts: Mapping[str, Mount]
    default: str | None
    ready: Callable[[], bool]

    app = Klein()

    @app.route("/servers/<name>/mcp", strict_slashes=False)
    def serverMCP(self, request: IRequest, name: str) -> IResource:
        return self._http(name, f"/servers/{name}/mcp")

    @app.route("/servers/<name>/sse", strict_slashes=False)
    def serverSSE(self, request: IRequest, name: str) -> IResource:
        return self._sse(name, f"/servers/{name}/sse")

    @app.route("/servers/<name>/messages", strict_slashes=False)
    def serverMessages(self, request: IRequest, name: str) -> IResource:
        return self._messages(name, f"/servers/{name}/messages")

    @app.route("/mcp", strict_slashes=False)
    def defaultMCP(self, request: IRequest) -> IResource:
        return self._http(self.default, "/mcp")

    @app.route("/sse", strict_slashes=False)
    def defaultSSE(self, request: IRequest) -> IResource:
        return self._sse(self.default, "/sse")

    @app.route("/messages", strict_slashes=False)
    def defaultMessages(self, request: IRequest) -> IResource:
        return self._messages(self.default, "/messages")

    @app.route("/healthz", strict_slashes=False)
    def healthz(self, request: IRequest) -> IResource:
        return ProxyResource(lambda exchange: self._tell(exchange, b"/healthz", True))

    @app.route("/readyz", strict_slashes=False)
    def readyz(self, request: IRequest) -> IResource:
        return ProxyResource(
            lambda exchange: self._tell(exchange, b"/readyz", self.ready(), servers=True)
        )

    @app.route("/", defaults={"path": ""})
    @app.route("/<path:path>")
    def elsewhere(self, request: IRequest, path: str) -> IResource:
        return self._refusing(refusals.notFound())

    def routes(self) -> dict[bytes, Serve]:
        """
        Every path of a proxy, as the map above spells them, and who serves it.

        For a door that would rather not ask the map for each request.
        """
        adapter = self.app.url_map.bind("")
        places = [("server", {"name": name}, mount) for name, mount in self.mounts.items()]
        mount = self._mountOf(self.default)
        if mount is not None:
            places.append(("default", {}, mount))
        table: dict[bytes, Serve] = {}
        for prefix, values, mount in places:
            for endpoint, serve in (
                ("MCP", mount.http.serve),
                ("SSE", mount.sse.serveStream),
                ("Messages", mount.sse.serveMessages),
            ):
                path = adapter.build(prefix + endpoint, values).encode()
                table[path] = table[path + b"/"] = partial(self._enter, serve, path)
        return table

    def _enter(
        self, serve: Callable[[Exchange, bytes], None], path: bytes, exchange: Exchange
    ) -> None:
        if self.ladder.foot(exchange):
            serve(exchange, path)

    def _http(self, name: str | None, path: str) -> IResource:
        mount = self._mountOf(name)
        if mount is None:
            return self._refusing(refusals.unknownServer())
        return ProxyResource(lambda exchange: mount.http.serve(exchange, path.encode()))

    def _sse(self, name: str | None, path: str) -> IResource:
        mount = self._mountOf(name)
        if mount is None:
            return self._refusing(refusals.unknownServer())
        return ProxyResource(lambda exchange: mount.sse.serveStream(exchange, path.encode()))

    def _messages(self, name: str | None, path: str) -> IResource:
        mount = self._mountOf(name)
        if mount is None:
            return self._refusing(refusals.unknownServer())
        return ProxyResource(lambda exchange: mount.sse.serveMessages(exchange, path.encode()))

    def _mountOf(self, name: str | None) -> Mount | None:
        return self.mounts.get(name) if name is not None else None

    def _refusing(self, refusal: Refusal) -> IResource:
        return ProxyResource(lambda exchange: self.ladder.refuse(exchange, refusal, "route"))

    def _tell(self, exchange: Exchange, path: bytes, good: bool, *, servers: bool = False) -> None:
        """
        Answer for the gateway. servers: whether for each server, too, by what is known of it
        anyway: nobody is asked now, and one that is down keeps no other from being served.
        """
        head = exchange.head
        if head.path.removesuffix(b"/") != path:
            self.ladder.refuse(exchange, refusals.notFound(), "route")
        elif head.method not in (b"GET", b"HEAD"):
            self.ladder.refuse(exchange, refusals.methodNotAllowed(b"GET, HEAD"), "method")
        else:
            told: dict[str, object] = {"status": "ok" if good else "unavailable"}
            if servers:
                told["ready"] = good
                told["servers"] = {
                    name: mount.http.server.health().value for name, mount in self.mounts.items()
                }
            exchange.answer(200 if good else 503, (JSON_TYPE,), msgspec.json.encode(told))
