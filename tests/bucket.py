"""A local stand-in for Google Cloud Storage, with the requests that gcsfs, TensorStore and google-cloud-storage send.

Objects have generations and checksums that are computed from the stored bytes. An upload takes effect when it is complete, and
`ifGenerationMatch` is honoured. Listings have small pages, so that a client that reads only the first one fails.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 7  # entries of a page of a listing


class Bucket(ThreadingHTTPServer):
    """A server with one bucket. objects: the bytes by name. log: (method, object) of all requests that change an object.

    forbidden: methods that are refused with 403. closed: objects of which all requests are.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass

    def __init__(self, name: str = "bucket"):
        super().__init__(("127.0.0.1", 0), _Request)
        self.name, self.objects, self.log, self.forbidden, self.closed = name, {}, [], set(), set()
        self.generations, self.clock = {}, itertools.count(1_700_000_000_000_000)
        self.uploads, self.lock = {}, threading.RLock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process uses this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_CLOUD_PROJECT": "test",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # looks for credentials
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_TIMEOUT": "1",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
        }

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            self.objects[name], self.generations[name] = data, next(self.clock)
            self.log.append(("PUT", name))

    def delete(self, name: str) -> None:
        with self.lock:
            del self.objects[name], self.generations[name]
            self.log.append(("DELETE", name))

    def describe(self, name: str) -> dict:
        data, generation = self.objects[name], str(self.generations[name])
        return {
            "kind": "storage#object",
            "id": f"{self.name}/{name}/{generation}",
            "name": name,
            "bucket": self.name,
            "generation": generation,
            "metageneration": "1",
            "size": str(len(data)),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "etag": generation,
        }


@contextmanager
def serving():
    """Start a bucket in a thread of this process."""
    server = Bucket()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Request(BaseHTTPRequestHandler):
    server: Bucket
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer takes 40 ms

    def log_message(self, *_) -> None:
        pass

    def _route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            status, headers, content = self._answer(self.command, self.path, body)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = {"Content-Type": "application/json"} | headers
        for name, value in (kind | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _route

    def _answer(self, method: str, target: str, body: bytes) -> tuple[int, dict, dict | bytes]:
        server, parts = self.server, urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if parts.path.startswith("/batch/"):
            return self._batch(body)
        match = re.fullmatch(r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+?))?)?/?", parts.path)
        if not match:
            return _error(404, f"no such method: {parts.path}")
        if method in server.forbidden or unquote(match[2] or "") in server.closed:
            return _error(403, "the caller does not have permission")
        if match[1] != server.name:
            return _error(404, "The specified bucket does not exist.")
        if parts.path.startswith("/upload"):
            return self._upload(method, query, body)
        if parts.path.rstrip("/").endswith(f"/b/{server.name}"):
            return 200, {}, {"kind": "storage#bucket", "id": server.name, "name": server.name, "location": "TEST"}
        if match[2] is None:
            return 200, {}, self._list(query)
        if copy := re.fullmatch(r"(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)", match[2]):
            return self._copy(unquote(copy[1]), unquote(copy[3]))
        return self._object(method, unquote(match[2]), query)

    def _object(self, method: str, name: str, query: dict) -> tuple[int, dict, dict | bytes]:
        server = self.server
        if failed := self._condition(name, query):
            return failed
        if name not in server.objects:
            return _error(404, f"No such object: {name}")
        if method == "DELETE":
            server.delete(name)
            return 204, {}, b""
        if query.get("alt") != "media":
            return 200, {}, server.describe(name)
        data, headers, status = server.objects[name], {"x-goog-generation": str(server.generations[name])}, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            if first >= len(data):
                return _error(416, "the range is outside the object")
            headers["Content-Range"], status = f"bytes {first}-{last}/{len(data)}", 206
            data = data[first : last + 1]
        return status, headers | {"Content-Type": "application/octet-stream"}, data

    def _condition(self, name: str, query: dict) -> tuple | None:
        found = str(self.server.generations.get(name, 0))
        if "ifGenerationMatch" in query and query["ifGenerationMatch"] != found:
            return _error(412, "a condition did not hold")
        if "ifGenerationNotMatch" in query and query["ifGenerationNotMatch"] == found:
            return 304, {}, b""
        return None

    def _list(self, query: dict) -> dict:
        prefix, delimiter, start = (query.get(key, "") for key in ("prefix", "delimiter", "startOffset"))
        entries = {}  # the objects and the prefixes in order, None for a prefix
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < start or name >= query.get("endOffset", "\U0010ffff"):
                continue
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entries[name if cut < 0 else name[: cut + 1]] = None if cut >= 0 else name
        keys = [key for key in sorted(entries) if key > query.get("pageToken", "")]
        page = keys[: min(PAGE, int(query.get("maxResults", PAGE)))]
        found = {
            "kind": "storage#objects",
            "items": [self.server.describe(key) for key in page if entries[key]],
            "prefixes": [key for key in page if not entries[key]],
        }
        return {k: v for k, v in found.items() if v} | ({"nextPageToken": page[-1]} if len(page) < len(keys) else {})

    def _upload(self, method: str, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        server = self.server
        if "upload_id" in query:
            name, query, data = server.uploads[query["upload_id"]]
            data += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                return 308, {"Range": f"bytes=0-{len(data) - 1}"}, b""
        elif query["uploadType"] == "multipart":
            boundary = re.search(r"boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[1].encode()
            meta, data = (part.split(b"\r\n\r\n", 1)[-1] if b"\r\n\r\n" in part else part.split(b"\n\n", 1)[-1]
                          for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
            name, data = json.loads(meta)["name"], data.removesuffix(b"\n").removesuffix(b"\r")
        elif query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = str(next(server.clock))
            server.uploads[key] = name, query, bytearray()
            return 200, {"Location": f"{server.url}/upload/storage/v1/b/{server.name}/o?upload_id={key}"}, {}
        else:
            name, data = query["name"], body
        if failed := self._condition(name, query):
            return failed
        server.put(name, bytes(data))
        return 200, {}, server.describe(name)

    def _copy(self, source: str, target: str) -> tuple[int, dict, dict]:
        if source not in self.server.objects:
            return _error(404, f"No such object: {source}")
        self.server.put(target, self.server.objects[source])
        return 200, {}, {"done": True, "resource": self.server.describe(target)}

    def _batch(self, body: bytes) -> tuple[int, dict, bytes]:
        parts = []
        for number, target in enumerate(re.findall(rb"DELETE (\S+) HTTP", body), 1):
            status, _, content = self._answer("DELETE", unquote(urlsplit(target.decode()).path, errors="strict"), b"")
            head = f"Content-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\nHTTP/1.1 {status} X\r\n\r\n"
            parts.append(head + (json.dumps(content) if status >= 400 else ""))
        text = "".join(f"--batch\r\n{part}\r\n" for part in parts) + "--batch--"
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, text.encode()


def _error(status: int, message: str) -> tuple[int, dict, dict]:
    return status, {}, {"error": {"code": status, "message": message, "errors": [{"message": message}]}}
