"""The page of a conversation: a server on this machine for a browser on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from errno import EACCES, EADDRINUSE
from ipaddress import ip_address
from typing import Any

from memtx.chat.conversation import Chat
from memtx.errors import UserError, optional


def serve(chat: Chat, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Serve the page of a conversation until Ctrl-C. Prints its address.

    port: 0 takes one that is free. host: an IPv4 address of this machine, or its name. Everyone who can reach it can read and
    forget documents without a password, so it should be a loopback address. Raises UserError if the port is in use, or in a
    notebook.
    """
    with suppress(RuntimeError):  # no event loop is running
        asyncio.get_running_loop()
        raise UserError("a notebook cannot serve the page; run memtx chat --memory=FOLDER --page in a terminal")
    with listen(host, port) as listener:
        server = make_server(chat, host)
        print(f"the page is at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # which uvicorn raises again at its end
            server.run(sockets=[listener])


def make_server(chat: Chat, host: str) -> Any:
    """Return the uvicorn.Server of a page, which answers only requests to this host or to the loopback addresses."""
    optional("starlette", "chat")
    uvicorn = optional("uvicorn", "chat")
    from memtx.chat.endpoints import Endpoints

    endpoints = Endpoints(chat)
    chosen = {"log_level": "warning", "access_log": False, "lifespan": "off", "ws": "none", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(endpoints.app(host), **chosen))
    endpoints.stopping = lambda: server.should_exit
    return server


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises UserError if it cannot, or if the address means all addresses."""
    if not 0 <= port < 2**16:
        raise UserError(f"the port must be between 0 and {2**16 - 1}, not {port}")
    try:
        listener = socket.create_server((host, port))
    except (OSError, ValueError) as error:  # ValueError: not a name
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or "this is not an address"
        reason = os.strerror(number).lower() if number and number > 0 else reason
        taken = number in (EADDRINUSE, EACCES)
        advice = "choose another port (--port=N)" if taken else "the host must be an IPv4 address of this machine"
        raise UserError(f"cannot serve the page at {host}:{port}: {reason}; {advice}") from None
    if ip_address(listener.getsockname()[0]).is_unspecified:  # which "" and "0" mean, too
        listener.close()
        raise UserError(f"{host!r} means all addresses; name the one that the browser uses, because the page checks it")
    return listener
