"""The endpoints of the page of a conversation. They accept and return JSON, and each request names its namespace.

GET  /                                 the page
GET  /state?namespace=NAME             its documents and its part of the conversation
GET  /document?namespace=NAME&id=ID    the name and the text of a document
POST /say       Say                    lines of JSON: {"piece"} while the answer is written, and then {"answer", "sources"}
POST /read      File                   {"entries"}
POST /forget    Forget                 the certificate

An error that the user can fix has status 400 and {"error": one line}. If it happens while an answer is written, it is a line of
the answer. A browser that ends the request for an answer stops the answer, and the conversation keeps the answer so far.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from re import DOTALL, findall
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memtx.chat.conversation import LARGEST, Answer, Chat, check_size
from memtx.errors import UserError
from memtx.fields import to_dataclass
from memtx.files.pages import read_page
from memtx.library.kind import Found
from memtx.library.record import Document, check_name

T = TypeVar("T")
START = 100  # characters of a document that the list of documents shows
BODY = 6 * LARGEST + 10_000  # bytes of a request: JSON writes a byte in at most 6
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Ask = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Say:
    """A message."""

    namespace: str = ""
    message: str = ""


@dataclass(frozen=True)
class File:
    """A document to read."""

    namespace: str = ""
    name: str = ""
    text: str = ""


@dataclass(frozen=True)
class Forget:
    """A document to forget, by its id."""

    namespace: str = ""
    document: str = ""


@dataclass
class Endpoints:
    """The endpoints. A conversation is used by one request at a time. stopping: whether the server is about to end."""

    chat: Chat
    stopping: Callable[[], bool] = lambda: False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self):
        self.first = self.chat.namespace

    def app(self, host: str) -> Starlette:
        """Return the application. It answers only requests to this host or to the loopback addresses."""
        gets, posts = (self.state, self.document), (self.read, self.forget)
        routes = [Route(f"/{ask.__name__}", _json(ask)) for ask in gets]
        routes += [Route(f"/{ask.__name__}", _json(ask), methods=["POST"]) for ask in posts]
        routes += [Route("/", self.page), Route("/say", self.say, methods=["POST"])]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"], www_redirect=False)
        return Starlette(routes=routes, middleware=[hosts, Middleware(Guard)])

    # --- the page

    async def page(self, request: Request) -> Response:
        """Return the page. Its policy allows nothing but its script and its style, and requests to this server."""
        return HTMLResponse(self.html, headers={"Content-Security-Policy": policy(self.html)})

    @cached_property
    def html(self) -> str:
        """The page."""
        return read_page("memtx.chat", "page.html")

    async def state(self, request: Request) -> dict[str, Any]:
        """Return the documents and turns of a namespace, by default that in which the conversation began."""
        return await self._used(request.query_params.get("namespace", self.first), self._state)

    async def document(self, request: Request) -> dict[str, str]:
        """Return the name and text of a document. It does not wait for an answer, because it reads nothing but the record."""
        space, id = (request.query_params.get(name, "") for name in ("namespace", "id"))
        found = await run_in_threadpool(self._found, space, id)
        if found.text is None:
            raise UserError(f"the library keeps no texts, so {found.name!r} cannot be shown")
        return {"name": found.name, "text": found.text}

    # --- changes

    async def read(self, request: Request) -> dict[str, int]:
        """Read a document."""
        file = await _body(request, File)
        check_size(len(file.text.encode()), file.name)
        check_name(file.name, "document")
        return {"entries": await self._used(file.namespace, lambda: self.chat.read(file.text, document=file.name))}

    async def forget(self, request: Request) -> dict[str, Any]:
        """Forget a document."""
        asked = await _body(request, Forget)

        def forget() -> dict[str, Any]:
            return self.chat.forget(self._found(asked.namespace, asked.document).id)

        return await self._used(asked.namespace, forget)

    async def say(self, request: Request) -> ASGIApp:
        """Return the response that writes an answer."""
        try:
            asked = await _body(request, Say)
            check_name(asked.namespace, "namespace")
            check_size(len(asked.message.encode()), "the message")
        except UserError as error:
            return _refusal(error)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            async with self.lock:
                await self._respond(asked, Request(scope, receive), send)

        return respond

    async def _respond(self, asked: Say, request: Request, send: Send) -> None:
        """Send the lines of an answer, until its end or that of the request."""

        async def left() -> bool:
            return self.stopping() or await request.is_disconnected()

        if await left():  # while it waited, so the message is not said
            return await JSONResponse({"error": "stopped"}, 503)(request.scope, request.receive, send)
        self.chat.namespace = asked.namespace
        writing = self.chat.stream(asked.message)
        try:
            line = await run_in_threadpool(_next_line, writing)
            if "error" in line:
                return await JSONResponse(line, 400)(request.scope, request.receive, send)
            headers = [(b"content-type", b"application/x-ndjson")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not await left():
                last = "piece" not in line
                await send({"type": "http.response.body", "body": json.dumps(line).encode() + b"\n", "more_body": not last})
                if last:
                    return
                line = await run_in_threadpool(_next_line, writing)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await run_in_threadpool(writing.close)  # the answer so far belongs to the conversation

    # --- the conversation

    async def _used(self, space: str, use: Callable[[], T]) -> T:
        """Use the conversation, in a namespace and in another thread, when no other request uses it."""
        check_name(space, "namespace")
        async with self.lock:
            self.chat.namespace = space
            return await run_in_threadpool(use)

    def _found(self, space: str, id: str) -> Document:
        """Return a document of a namespace. Raises UserError if it has none with this id."""
        check_name(space, "namespace")  # "*" would mean all
        for document in self.chat.library.record.visible([space]):
            if document.id == id:
                return document
        raise UserError("this document is not in the namespace any more")

    def _state(self) -> dict[str, Any]:
        chat = self.chat
        record = chat.library.record
        turns = [{"message": t.message, "answer": t.answer, "sources": _sources(t.sources)} for t in chat.history()]
        documents = [
            {"id": d.id, "name": d.name, "entries": d.entries, "time": d.time, "start": (d.text or "")[:START]}
            for d in record.visible([chat.namespace])
        ]
        spaces = sorted({self.first, chat.namespace, *(document.namespace for document in record.documents)})
        library = {"library": chat.library.path.name, "kind": chat.library.settings.kind, "model": chat.model_name}
        shown = {"namespace": chat.namespace, "namespaces": spaces, "documents": documents, "turns": turns}
        return {**library, **shown, "largest": LARGEST}


class Guard:
    """Refuse requests that pages of other servers could send, and add headers to all answers."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. A POST must be JSON, which other origins cannot send without asking, and of the same origin."""
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        if headers.get("origin", own := f"http://{headers.get('host')}") != own:
            app = JSONResponse({"error": "the request comes from another page"}, 403)
        elif scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            app = JSONResponse({"error": "the content type must be application/json"}, 415)
        await app(scope, receive, guarded)


def policy(html: str) -> str:
    """Return the Content-Security-Policy of a page: the digests of its scripts and styles, and no other sources."""

    def digests(tag: str) -> str:
        inline = findall(f"<{tag}>(.*?)</{tag}>", html, DOTALL)
        return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in inline)

    own = f"script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; img-src data:"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _json(ask: Ask) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that answers with the JSON of a method, or with its error."""

    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await ask(request))
        except UserError as error:
            return _refusal(error)

    return endpoint


def _refusal(error: UserError) -> Response:
    return JSONResponse({"error": str(error)}, 400)


async def _body(request: Request, cls: type[T]) -> T:
    """Return the body of a request as a dataclass. Raises UserError if it is too large, or is of another form."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY:
            raise UserError(f"the request has more than {BODY / 1e6:.0f} MB")
    try:
        values = json.loads(content)
        json.dumps(values, ensure_ascii=False).encode()  # raises for halves of surrogate pairs, which no tokenizer takes
    except (ValueError, RecursionError):
        raise UserError("the request is not JSON of Unicode text") from None
    return to_dataclass(cls, values, cls.__name__.lower())


def _next_line(writing: Generator[str, None, Answer]) -> dict[str, Any]:
    """Return the next line of an answer."""
    try:
        return {"piece": next(writing)}
    except StopIteration as stop:
        return {"answer": stop.value.text, "sources": _sources(stop.value.sources)}
    except UserError as error:
        return {"error": str(error)}


def _sources(found: tuple[Found, ...]) -> list[dict[str, Any]]:
    """Return sources as JSON. The span counts code points."""
    names = ("text", "span", "document", "position", "score")
    return [{name: getattr(entry, name) for name in names} | {"id": entry.entry.partition(":")[0]} for entry in found]
