"""The page of a conversation: a real server with a tiny library, asked as a browser asks."""

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from memtx import library
from memtx.chat import Chat, Settings
from memtx.chat.conversation import LARGEST
from memtx.chat.endpoints import policy
from memtx.chat.page import listen, make_server, serve
from memtx.config import Config, Model
from memtx.data import tokenizers
from memtx.errors import UserError
from memtx.models.lm import build
from memtx.runs.load import Loaded
from tests.library.fakes import create_fake

SKY = "The sky is blue. It rains often. The 🌧 is loud. Nobody sings here."
BYTES = tokenizers.byte_tokenizer()


class Scripted(Chat):
    """A conversation whose answers are given. With `gate`, each piece waits until it is set."""

    pieces: Any = ("It ", "is ", "blue.")
    gate: threading.Event | None = None
    written = 0
    writers = 0

    def _written(self, model, prompt):
        self.writers += 1
        assert self.writers == 1  # one answer at a time
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                if self.gate and self.written:
                    assert self.gate.wait(20)
                self.written += 1
                yield piece
        finally:
            self.writers -= 1


class Browser:
    """Requests to a server, with the headers that the page sends."""

    def __init__(self, port: int):
        self.host = f"127.0.0.1:{port}"

    @contextmanager
    def request(self, method: str, path: str, body: Any = None, **headers: str):
        connection = http.client.HTTPConnection(self.host, timeout=20)
        sent = {"Host": self.host}
        if method == "POST":
            sent |= {"Content-Type": "application/json", "Origin": f"http://{self.host}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, {name: value for name, value in sent.items() if value})
        with closing(connection), connection.getresponse() as response:
            yield response

    def answer(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        with self.request(method, path, body, **headers) as response:
            content = response.read().decode()
        try:
            return response.status, json.loads(content)
        except ValueError:
            return response.status, content

    def get(self, path: str) -> tuple[int, Any]:
        return self.answer("GET", path)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        return self.answer("POST", path, body, **headers)

    def saying(self, message: str, namespace: str = "default"):
        return self.request("POST", "/say", {"namespace": namespace, "message": message})

    def say(self, message: str, namespace: str = "default") -> list[dict]:
        with self.saying(message, namespace) as response:
            return [json.loads(line) for line in response.read().splitlines()]

    def state(self, namespace: str = "default") -> dict:
        return self.get(f"/state?namespace={namespace}")[1]


@contextmanager
def serving(chat: Chat):
    with listen("127.0.0.1", 0) as listener:
        server = make_server(chat, "127.0.0.1")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Browser(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def chat(tmp_path) -> Scripted:
    found = create_fake(tmp_path / "library")
    found.read(SKY, document="sky.txt")
    found.read("Bob likes pears.", document="bob.txt", namespace="bob")
    model: Any = SimpleNamespace(tokenizer=BYTES, step=1)
    return Scripted(found, Settings(passages=2), model=model)


@pytest.fixture
def browser(chat):
    with serving(chat) as found:
        yield found


def wait_for(holds, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- the page


def test_the_page_needs_nothing_else_and_allows_nothing_else(browser):
    with browser.request("GET", "/") as response:
        html, csp = response.read().decode(), response.headers["Content-Security-Policy"]
    assert response.status == 200
    assert html.startswith("<!doctype html>")
    assert "--paper:" in html  # the shared style
    assert re.search(r'<textarea id="message"[^>]* disabled>', html)  # until the state has come, so that no message is lost
    assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|\son\w+=|\sstyle=", html)
    assert csp == policy(html)
    assert "default-src 'none'" in csp
    assert "unsafe" not in csp
    assert csp.count("sha256-") == 2
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_state_has_the_documents_of_one_namespace(browser):
    state = browser.get("/state")[1]
    assert [(document["name"], document["entries"]) for document in state["documents"]] == [("sky.txt", 4)]
    assert state["documents"][0]["start"] == SKY[:100]
    assert (state["namespace"], state["namespaces"], state["turns"]) == ("default", ["bob", "default"], [])
    assert (state["kind"], state["model"], state["library"]) == ("sentences", "smollm2", "library")
    assert [document["name"] for document in browser.state("bob")["documents"]] == ["bob.txt"]
    assert browser.state("new")["namespaces"] == ["bob", "default", "new"]


# --- messages


def test_an_answer_is_streamed_with_its_sources_and_stays_in_the_state(browser):
    *pieces, last = browser.say("How is the sky?")
    assert pieces == [{"piece": "It "}, {"piece": "is "}, {"piece": "blue."}]
    assert last["answer"] == "It is blue."
    state = browser.state()
    assert state["turns"] == [{"message": "How is the sky?", "answer": "It is blue.", "sources": last["sources"]}]
    assert last["sources"]
    for source in last["sources"]:
        document = browser.get(f"/document?namespace=default&id={source['id']}")[1]
        assert document == {"name": "sky.txt", "text": SKY}
        assert document["text"][slice(*source["span"])] == source["text"]
    assert browser.state("bob")["turns"] == []


def test_a_message_is_remembered_in_its_namespace_whatever_the_last_request_had(browser):
    browser.state("bob")
    browser.say("My dog is called Bruno.")
    assert len(browser.state("default")["documents"]) == 2
    assert len(browser.state("bob")["documents"]) == 1


def test_a_browser_that_leaves_stops_the_answer_which_is_kept_so_far(chat, browser):
    chat.gate = threading.Event()
    with browser.saying("How is the sky?") as response:
        assert json.loads(response.readline()) == {"piece": "It "}
    time.sleep(0.2)  # the server sees the end of the connection
    chat.gate.set()
    wait_for(lambda: chat.turns)
    assert [turn["answer"] for turn in browser.state()["turns"]] == ["It is"]
    assert chat.written == 2  # the piece that was under way is the last
    assert browser.say("And now?")[-1]["answer"] == "It is blue."


def test_requests_at_once_are_answered_one_after_another(chat, browser):
    answers = {}
    threads = [threading.Thread(target=lambda n=n: answers.update({n: browser.say(f"{n}?", "bob")})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {len(lines) for lines in answers.values()} == {4}
    assert len(answers) == 4
    assert sorted(turn["message"] for turn in browser.state("bob")["turns"]) == ["0?", "1?", "2?", "3?"]


def test_a_document_is_shown_while_an_answer_is_written_and_a_message_of_a_browser_that_left_is_not_said(chat, browser):
    chat.gate = threading.Event()
    id = browser.state()["documents"][0]["id"]
    with browser.saying("How is it?") as writing:
        waiting = http.client.HTTPConnection(browser.host)
        waiting.request("POST", "/say", b'{"namespace": "default", "message": "I left."}', {"Content-Type": "application/json"})
        time.sleep(0.2)
        assert browser.get(f"/document?namespace=default&id={id}")[1]["name"] == "sky.txt"
        waiting.close()
        time.sleep(0.2)
        chat.gate.set()
        assert b"blue." in writing.read()
    state = browser.state()
    assert [turn["message"] for turn in state["turns"]] == ["How is it?"]
    assert len(state["documents"]) == 1


def test_an_error_is_one_line_before_an_answer_and_within_it(chat, browser):
    assert browser.post("/say", {"namespace": "default", "message": " "}) == (400, {"error": "the message is blank"})
    chat.pieces = ("It ", UserError("the model is tired"))
    assert browser.say("How is the sky?") == [{"piece": "It "}, {"error": "the model is tired"}]
    chat.pieces = ("Well.",)
    assert browser.say("And now?")[-1]["answer"] == "Well."


# --- documents


def test_a_document_is_read_and_replaced(browser):
    assert browser.post("/read", {"namespace": "default", "name": "new.txt", "text": "One. Two."}) == (200, {"entries": 2})
    assert browser.post("/read", {"namespace": "default", "name": "new.txt", "text": "One."}) == (200, {"entries": 1})
    assert [document["name"] for document in browser.state()["documents"]] == ["sky.txt", "new.txt"]
    assert [document["name"] for document in browser.state("bob")["documents"]] == ["bob.txt"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("read", {"name": "a", "text": " \n"}, "'a' has no text"),
        ("read", {"name": "a", "text": "é" * (LARGEST // 2 + 1)}, "a is larger than 2 MiB"),
        ("read", {"name": "a", "text": "x" * (6 * LARGEST + 10_000)}, "the request has more than 13 MB"),
        ("read", {"name": "", "text": "x"}, "the name of a document must have"),
        ("read", {"name": "a\n", "text": "x"}, "the name of a document must have"),
        ("read", {"name": "a", "text": 3}, "file.text must be str, not 3"),
        ("read", {"name": "a", "txt": "x"}, "unknown key in file 'txt'; did you mean text"),
        ("read", {"name": "a", "text": "\ud800"}, "not JSON of Unicode text"),
        ("read", [], "file is a group of keys"),
        ("say", {"message": "Is it \udfff?"}, "not JSON of Unicode text"),
        ("say", {"message": "é" * (LARGEST // 2 + 1)}, "the message is larger than 2 MiB"),
        ("say", {"message": "Is it?", "namespace": "*"}, "the name of a namespace must have"),
        ("say", b"{", "not JSON of Unicode text"),
        ("say", b"\xff", "not JSON of Unicode text"),
        ("say", b"[" * 100_000, "not JSON of Unicode text"),
        ("forget", {"document": "none"}, "this document is not in the namespace any more"),
    ],
)
def test_a_request_that_cannot_be_granted_is_one_line_and_changes_nothing(chat, browser, path, body, says):
    digest = chat.library.digest()
    status, answer = browser.post(f"/{path}", {"namespace": "default"} | body if isinstance(body, dict) else body)
    assert status == 400
    assert says in answer["error"]
    assert "\n" not in answer["error"]
    assert chat.library.digest() == digest
    assert chat.turns == []


def test_forgetting_takes_an_id_of_the_namespace_and_the_turns_that_came_from_it_vanish(chat, browser):
    browser.say("How is the sky?")
    sky, bob = (browser.state(space)["documents"][0]["id"] for space in ("default", "bob"))
    for wrong in (
        {"document": bob},
        {"document": "sky.txt"},
        {"document": sky, "namespace": "bob"},
        {"document": sky, "namespace": "*"},
    ):
        assert browser.post("/forget", {"namespace": "default"} | wrong)[0] == 400
    assert browser.get(f"/document?namespace=default&id={bob}")[0] == 400
    assert browser.get(f"/document?namespace=*&id={bob}")[0] == 400
    assert len(browser.state()["turns"]) == 1
    status, certificate = browser.post("/forget", {"namespace": "default", "document": sky})
    assert status == 200
    assert [removed["name"] for removed in certificate["removed"]] == ["sky.txt"]
    assert chat.library.verify(certificate)
    assert browser.state()["turns"] == browser.state()["documents"] == []
    assert len(browser.state("bob")["documents"]) == 1


def test_a_library_without_texts_shows_no_documents(chat, tmp_path):
    chat.library = create_fake(tmp_path / "no texts", texts=False)  # as one of entries may be
    chat.library.read("The sky is blue.", document="sky")
    with serving(chat) as browser:
        (document,) = browser.state()["documents"]
        assert document["start"] == ""
        assert "keeps no texts" in browser.get(f"/document?namespace=default&id={document['id']}")[1]["error"]


# --- other pages


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1"])
def test_another_host_is_refused(browser, host):
    for method, path in (("GET", "/"), ("GET", "/state"), ("POST", "/forget")):
        assert browser.answer(method, path, b"{}", Host=host)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Origin": ""}, 200),  # not a browser
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_only_json_from_the_page_itself_changes_anything(chat, browser, headers, status):
    before = chat.library.record.version
    assert browser.post("/read", {"namespace": "default", "name": "a", "text": "One."}, **headers)[0] == status
    assert (chat.library.record.version > before) == (status == 200)


def test_other_paths_and_methods_are_refused(browser):
    assert browser.get("/say")[0] == browser.get("/forget")[0] == 405
    assert browser.post("/state", {})[0] == 405
    assert browser.get("/../conversation.py")[0] == browser.get("/page.html")[0] == 404


# --- a library of entries


@pytest.mark.thorough
def test_a_model_that_reads_its_library_gives_entries_as_sources(tmp_path):
    size = {"width": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ff_dim": 16}
    lm = build(Model(stacks=((("window",), 1),), **size), vocab_size=BYTES.vocab_size)  # the library adds a kNN-LM head
    model = Loaded(lm, lm.init(jax.random.key(0)), lm.init_state(1), BYTES, Config(), 0)
    found = library.create(tmp_path / "library", "tiny", kind="entries", loaded=model)
    found.read("The tower was built in 1889.", document="tower")
    with serving(Chat(found, Settings(passages=2, max_tokens=4))) as browser:
        *pieces, last = browser.say("When was it built?")
        assert "".join(line["piece"] for line in pieces).strip() == last["answer"]
        assert {source["document"] for source in last["sources"]} == {"tower"}
        state = browser.state()
        assert state["turns"][0]["sources"] == last["sources"]
        assert (state["kind"], state["model"]) == ("entries", "tiny")


# --- the server


@pytest.mark.parametrize("host", ["0.0.0.0", "", "0"])
def test_an_address_that_means_all_addresses_is_refused(chat, host):
    with pytest.raises(UserError, match=f"'{host}' means all addresses"):
        serve(chat, port=0, host=host)


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "a..b"])
def test_an_address_that_is_not_of_this_machine_is_one_line(chat, host):
    with pytest.raises(UserError, match=r"^cannot serve .*; the host must be an IPv4 address of this machine$"):
        serve(chat, port=0, host=host)


def test_a_port_that_cannot_be_used_is_one_line(chat, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"in use; choose another port"):
        serve(chat, port=taken.getsockname()[1])
    with pytest.raises(UserError, match="between 0 and 65535"):
        serve(chat, port=70000)
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UserError, match=r"\.\[chat\]"):
        serve(chat, port=0)


def test_a_notebook_is_sent_to_the_terminal(chat):
    async def cell():
        serve(chat, port=0)

    with pytest.raises(UserError, match="a notebook cannot serve the page; run memtx chat .* in a terminal"):
        asyncio.run(cell())


def test_the_command_prints_the_address_and_ends_with_ctrl_c(tmp_path):
    create_fake(tmp_path / "notes")
    command = [
        sys.executable,
        "-c",
        "from memtx import cli; cli.main()",
        "chat",
        f"--memory={tmp_path / 'notes'}",
        "--page",
        "--port=0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            port = re.fullmatch(r"the page is at http://127\.0\.0\.1:(\d+) \(Ctrl-C ends it\)\n", line)
            assert port, line
            assert Browser(int(port[1])).state()["documents"] == []
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, rest, errors) == (0, "", "")
