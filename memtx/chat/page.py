"""The page of a conversation: a server on this machine for a browser on this machine."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from ipaddress import ip_address

from memtx.chat.conversation import Chat
from memtx.errors import UserError, optional


def serve(chat: Chat, port: int = 8000, host: str = "127.0.0.1") -> None:
    """Serve the page of a conversation until Ctrl-C. Prints its address.

    port: 0 takes one that is free. host: an address of this machine. Everyone who can reach it can read and forget documents
    without a password, so it should be a loopback address. Raises UserError if the port is in use.
    """
    optional("starlette", "chat")
    uvicorn = optional("uvicorn", "chat")
    from memtx.chat.endpoints import Endpoints

    with listen(host, port) as listener:
        endpoints = Endpoints(chat)
        chosen = {"log_level": "warning", "access_log": False, "lifespan": "off", "ws": "none", "proxy_headers": False}
        server = uvicorn.Server(uvicorn.Config(endpoints.app(host), **chosen))
        endpoints.stopping = lambda: server.should_exit
        print(f"the page is at http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # which uvicorn raises again at its end
            server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises UserError if it cannot, or if the address means all addresses."""
    with suppress(ValueError):  # a name
        if ip_address(host).is_unspecified:
            raise UserError(f"{host} means all addresses; name the one that the browser uses, because the page checks it")
    if not 0 <= port < 2**16:
        raise UserError(f"the port must be between 0 and {2**16 - 1}, not {port}")
    try:
        return socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror
        raise UserError(f"cannot serve the page at {host}:{port}: {reason}; choose another port (--port=N)") from None
