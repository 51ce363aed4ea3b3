"""Which requests are answered at all, and what the browser may do with the answers.

The page listens on this machine, but web pages elsewhere can still send requests to it through the user's browser: with
their own name for this machine's address (DNS rebinding), or across origins. Gradio checks neither the host of a
request nor the origin of an upload. Here both are checked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# Gradio serves files and other sites here. This page has addresses of its own for its pictures.
CLOSED = (
    "/gradio_api/file",
    "/gradio_api/proxy",
    "/file",
    "/proxy",
    "/monitoring",
    "/gradio_api/runs",
    "/gradio_api/vibe",
)
# Nothing is loaded from elsewhere, whatever a script or a style sheet asks for. Gradio's scripts need eval.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
# A report is one file. It may run its own scripts, but they can reach neither the page nor anything else.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; frame-ancestors 'self'"
)


class Guard:
    """Answers only requests that come from the page itself, and tells the browser to load nothing from elsewhere.

    Args:
        app: answers the requests that are let through.
        host: the address that the server listens at. A request may name it, an IP address, or localhost. An attacker's
            page cannot make a browser send one of these names for an address that it chose.
    """

    def __init__(self, app: Application, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = refused(headers, str(scope.get("path", "")), self._host)
        if scope["type"] != "http" or refusal is not None:
            await _refuse(scope, send, refusal or "there are no web sockets here")
            return
        await self._app(scope, receive, self._with_headers(scope, send))

    @staticmethod
    def _with_headers(scope: Message, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.lower() != b"server"]
                told = {name.lower() for name, _ in own}
                own += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                own += [(b"cross-origin-resource-policy", b"same-origin")]
                if b"content-security-policy" not in told:
                    own.append((b"content-security-policy", POLICY.encode()))
                message["headers"] = own
            await send(message)

        return sending


def refused(headers: dict[str, str], path: str, host: str) -> str | None:
    """Why a request is not answered; None if it is.

    Args:
        headers: {name in small letters: value}.
        path: the path of the address.
        host: the address that the server listens at.
    """
    asked = headers.get("host", "")
    if not _is_ours(asked, host):
        return "this name of the server is not known; use the address that the program printed"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != asked.lower():
        return "this page answers no other pages"
    # Browsers say where a request comes from. A link from elsewhere may open the page, and nothing else.
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
    is_link = mode == "navigate" and path == "/" and headers.get("sec-fetch-dest", "document") == "document"
    if site not in ("none", "same-origin") and not is_link:
        return "this page answers no other pages"
    plain = "/" + unquote(path).lstrip("/")
    if any(plain.startswith(closed) for closed in CLOSED):
        return "there is nothing here"
    return None


def _is_ours(asked: str, host: str) -> bool:
    try:
        name = urlsplit(f"//{asked}").hostname or ""
    except ValueError:
        return False
    if name.rstrip(".") == "localhost" or name == host.lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(scope: Message, send: Send, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
