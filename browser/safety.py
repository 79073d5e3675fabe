"""Who may talk to the server: the page that it served, and nobody else.

On loopback any page in the browser could send requests to it, so requests from pages of other origins are refused, and
requests under another host name, too, because a name can be made to point here (DNS rebinding). On other addresses a
random token is needed as well.
"""

import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "editor_token"  # Beginning of the cookie's name; the port follows, because browsers share cookies among ports.
POLICY_VIOLATION = 1008  # code with which a WebSocket is closed (RFC 6455)


class OwnPageOnly:
    """Refuses requests of other origins, under other host names, and without the token if there is one."""

    def __init__(self, app: ASGIApp, hosts: set[str] | None, token: str | None):
        """hosts: names (with port) under which the server may be addressed; None allows all. token: None needs none."""
        self.app, self.hosts, self.token = app, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with 403."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if (reason := self.find_reason(headers, given)) is None:
            cookie = cookie_name(headers.get("host", ""))
            await self.app(scope, receive, self.set_cookie(cookie, send) if self.token and given else send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        else:
            await PlainTextResponse(f"refused: {reason}\n", status_code=403)(scope, receive, send)

    def find_reason(self, headers: dict[str, str], given: str) -> str | None:
        """Return why a request is refused; None if it is allowed. given: token in the address."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and host not in self.hosts:
            return f"the editor is not reached under the name {host}; use the address that the terminal shows"
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return f"the request comes from a page of {origin}; only the editor's own page may use it"
        if self.token is None:
            return None
        known = [given, read_cookie(cookie_name(host), headers.get("cookie", ""))]
        if not any(secrets.compare_digest(self.token.encode(), each.encode()) for each in known):
            return "the token is missing or wrong; open the whole address that the terminal shows"
        return None

    def set_cookie(self, cookie: str, send: Send) -> Send:
        """Return a function that sends an answer and stores the token in a cookie, for the files of the page."""

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = f"{cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
                message = {**message, "headers": [*message["headers"], (b"set-cookie", value.encode())]}
            await send(message)

        return send_with_cookie


def cookie_name(host: str) -> str:
    """Return the name of the cookie for a host with its port."""
    return f"{COOKIE}_{host.rpartition(':')[2]}" if host.rpartition(":")[2].isdecimal() else COOKIE


def read_cookie(name: str, header: str) -> str:
    """Return the token in a cookie header; empty if there is none."""
    try:
        cookie = SimpleCookie(header)
    except CookieError:
        return ""
    return cookie[name].value if name in cookie else ""
