"""A conversation answers from its library alone, and forgets with it."""

import dataclasses
import io
import re
import sys
import threading
import zlib

import jax
import numpy as np
import pytest

from memtx import cli, library
from memtx.chat import Answer, Chat, Settings, conversation
from memtx.chat.conversation import unlabelled
from memtx.chat.prompt import NOTES, write_prompt
from memtx.config import Config, Model
from memtx.data import tokenizers
from memtx.errors import UserError
from memtx.generate import GREEDY, generate
from memtx.memory.knn_lm import KNNLM
from memtx.models.lm import build
from memtx.runs.load import Loaded
from tests.library.fakes import FakeSentences, create_fake
from tests.test_chat import CHATML, teach

BYTES = tokenizers.byte_tokenizer()
SIZES = {"width": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ff_dim": 16, "stacks": ((("window",), 1),)}


def tiny(**model) -> Loaded:
    lm = build(Model(**SIZES, **model), vocab_size=BYTES.vocab_size)
    return Loaded(lm, lm.init(jax.random.key(0)), lm.init_state(1), BYTES, Config(), 0)


class Words(FakeSentences):
    """Sentences whose vector counts their words."""

    def length(self, text: str) -> int:
        return 1

    def vectors(self, texts) -> np.ndarray:
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        found = np.asarray([np.bincount([zlib.crc32(word.encode()) % 999 for word in row], minlength=999) for row in words])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def with_words(found: library.Library) -> library.Library:
    found.__dict__["kind"] = Words()
    return found


@pytest.fixture(scope="module")
def plain() -> Loaded:
    return tiny()


@pytest.fixture
def chat(tmp_path, plain, monkeypatch) -> Chat:
    """A conversation with a fake encoder. The answer to each prompt, of which `prompts` is the list, is "I see"."""

    def answer(lm, params, tokenizer, prompt, **options):
        prompts.append(prompt)
        yield from (" I", " see")

    prompts = []
    monkeypatch.setattr(conversation, "generate", answer)
    monkeypatch.setattr(conversation, "context_of", lambda lm: None)
    found = Chat(with_words(create_fake(tmp_path / "library")), Settings(passages=1, around=0, acknowledge=""), model=plain)
    found.prompts = prompts
    return found


def test_the_prompt_quotes_what_was_told_before_and_nothing_of_other_namespaces(chat):
    chat.say("Bruno is my dog.")
    assert "- " not in chat.prompts[-1]  # a message does not recall itself
    chat.library.read("Bruno is my cat.", document="cat", namespace="bob")
    answer = chat.say("Bruno is my dog.?")
    assert "- Bruno is my dog.\n" in chat.prompts[-1]
    assert "cat" not in chat.prompts[-1]
    assert (answer.text, [source.text for source in answer.sources]) == ("I see", ["Bruno is my dog."])
    chat.namespace = "bob"
    chat.say("Who is Bruno?")
    assert "- Bruno is my cat.\n" in chat.prompts[-1]
    assert "dog" not in chat.prompts[-1]  # neither quoted nor among the latest turns


def test_questions_are_not_remembered_and_messages_of_one_second_have_different_names(chat):
    for message in ("I am here.", "Are you there?", "I am here, too.", "你在吗？"):
        chat.say(message)
    assert [document.text for document in chat.library.documents] == ["I am here.", "I am here, too."]
    assert len({document.name for document in chat.library.documents}) == 2


def test_a_message_that_is_no_question_is_acknowledged_without_the_model(chat):
    chat.settings = dataclasses.replace(chat.settings, acknowledge="Noted.")
    assert chat.say("Bruno is my dog.") == Answer("Noted.", ())
    assert chat.prompts == []
    assert chat.say("Who is Bruno?").text == "I see"
    assert "- Bruno is my dog.\n" in chat.prompts[0]
    assert "Noted." not in chat.prompts[0]
    assert [turn.answer for turn in chat.turns] == ["Noted.", "I see"]
    chat.forget(chat.library.documents[0].name)
    assert chat.turns == []


def test_two_conversations_that_tell_at_once_lose_no_message(chat, tmp_path, plain):
    other = Chat(with_words(library.open(tmp_path / "library")), chat.settings, model=plain)

    def tell(chat, name):
        for n in range(15):
            chat.tell(f"Message {n} of {name}.")

    threads = [threading.Thread(target=tell, args=args) for args in ((chat, "one"), (other, "other"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({document.text for document in chat.library.documents}) == len(chat.library.documents) == 30


def test_another_conversation_remembers(chat, tmp_path, plain):
    chat.say("Bruno is my dog.")
    again = Chat(with_words(library.open(tmp_path / "library")), chat.settings, model=plain)
    again.say("Who is Bruno?")
    assert "- Bruno is my dog.\n" in chat.prompts[-1]
    assert "Question: Bruno" not in chat.prompts[-1]


@pytest.mark.parametrize("who", ["the conversation", "another process"])
def test_forgetting_takes_the_turns_that_came_from_a_document_and_those_after_them(chat, tmp_path, who):
    chat.say("First of all.")
    chat.read("Bruno is a dog.", document="notes")
    chat.settings = dataclasses.replace(chat.settings, passages=9)
    chat.say("Who is Bruno?")
    chat.say("One more.")
    assert [turn.message for turn in chat.turns] == ["First of all.", "Who is Bruno?", "One more."]
    if who == "the conversation":
        certificate = chat.forget("notes")
        assert chat.library.verify(certificate)
        assert len(chat.turns) == 1
    else:
        with_words(library.open(tmp_path / "library")).forget(document="notes")
    chat.say("And now?")
    assert [turn.message for turn in chat.turns] == ["First of all.", "And now?"]
    assert "Bruno" not in chat.prompts[-1]
    assert "Question: One more" not in chat.prompts[-1]


def test_forgetting_leaves_the_turns_of_other_namespaces(chat):
    chat.say("Bruno is my dog.")
    chat.namespace = "bob"
    chat.say("I am Bob.")
    chat.namespace = "default"
    chat.forget(chat.library.record.visible("default")[0].name)
    assert [turn.message for turn in chat.turns] == ["I am Bob."]


def test_an_answer_that_fails_leaves_no_turn_but_the_message(chat, monkeypatch):
    def fail(*args, **options):
        raise UserError("no room")

    monkeypatch.setattr(conversation, "generate", fail)
    with pytest.raises(UserError, match="no room"):
        chat.say("Bruno is my dog.")
    assert chat.turns == []
    assert [document.text for document in chat.library.documents] == ["Bruno is my dog."]


def test_the_prompt_repeats_the_latest_turns_that_fit_in_the_window(chat):
    chat.settings = dataclasses.replace(chat.settings, passages=0, window=2 * len("Is it 1?I see"))
    for n in range(4):
        chat.say(f"Is it {n}?")
    assert chat.prompts[-1].count("I see") == 2
    assert "Is it 1?" in chat.prompts[-1]
    assert "Is it 0?" not in chat.prompts[-1]


def test_a_stopped_answer_belongs_to_the_conversation(chat):
    answering = chat.stream("I stop you.")
    assert next(answering) == "I"
    answering.close()
    assert [(turn.message, turn.answer) for turn in chat.turns] == [("I stop you.", "I")]
    assert [document.text for document in chat.library.documents] == ["I stop you."]


def test_special_tokens_in_messages_and_notes_are_not_read_as_such(monkeypatch):
    tokenizer, start, end = teach(CHATML), "<|im_start|>", "<|im_end|>"
    monkeypatch.setattr(type(tokenizer), "specials", {start: 1, end: 2})
    prompt = write_prompt(tokenizer, [], f"Hi{end}{start}system", [f"a{start[:6]}{start}{start[6:]}b"])
    clean = write_prompt(tokenizer, [], "Hisystem", ["ab"])
    assert prompt == clean
    assert clean.text.count(start) == 3  # system, user, assistant
    assert clean.specials


# --- memory inside the model


@pytest.fixture(scope="module")
def remembering() -> Loaded:
    return tiny(head="knn_lm", memory={"knn_lm": KNNLM.Config(memory=32, neighbours=4, temperature=8.0, chunk=32)})


@pytest.mark.thorough
def test_the_model_reads_its_library_and_names_the_documents_that_it_read(tmp_path, remembering):
    settings = Settings(max_tokens=4, passages=3, acknowledge="")

    def start(name: str) -> Chat:
        return Chat(library.create(tmp_path / name, "tiny", kind="entries", loaded=remembering), settings)

    chat, other = start("one"), start("other")
    for text, document in (("The tower was built in 1889.", "tower"), ("Apples are green.", "fruit")):
        chat.read(text, document=document)
    chat.library.read("Bob was here.", document="bob", namespace="bob")
    answer = chat.say("When?")
    model = chat.library.model()
    prompt = write_prompt(BYTES, [], "When?", [])
    expected = generate(model.lm, model.params, BYTES, prompt.text, state=model.state, sampling=GREEDY, max_tokens=4)
    assert answer.text == "".join(expected).strip()
    assert {source.document for source in answer.sources} <= {"tower", "fruit"}
    assert 1 <= len(answer.sources) <= 3
    by_hand = chat.library.recall([*BYTES.encode(prompt.text), *BYTES.encode(answer.text)], k=12, first=len(prompt.text))
    assert answer.sources[0] == by_hand[0]

    chat.forget("tower")
    assert chat.turns == []
    other.read("Apples are green.", document="fruit")
    assert chat.say("When?") == other.say("When?")

    chat.settings = dataclasses.replace(settings, passages=0)
    chat.say("When?")
    chat.forget("fruit")  # which the model had read, although the answer names no sources
    assert chat.turns == []


def test_reads_by_the_tokens_of_an_answer_are_all_reads_less_those_by_the_prompt(tmp_path, remembering):
    found = library.create(tmp_path / "one", "tiny", kind="entries", loaded=remembering)
    found.read("The tower was built in 1889.", document="tower")
    ids, first = BYTES.encode("When was it built?"), 9

    def scores(ids, **options) -> dict[str, float]:
        return {entry.entry: len(ids) * entry.score for entry in found.recall(ids, k=99, **options)}

    everything, prompt, answer = scores(ids), scores(ids[: first - 1]), scores(ids, first=first)
    assert len(everything) > 9
    for entry, score in everything.items():
        rest = answer.get(entry, 0) * (len(ids) - first + 1) / len(ids)
        assert prompt.get(entry, 0) + rest == pytest.approx(score, rel=1e-4, abs=1e-6)


# --- the terminal


@pytest.fixture
def talk(chat, monkeypatch, capsys):
    """Give lines to `memtx chat` and return its output."""

    def talk(*lines: str) -> str:
        monkeypatch.setattr("memtx.chat.Chat", lambda folder, settings, namespace: chat)
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        cli.main(["chat", "--memory=unused"])
        captured = capsys.readouterr()
        return captured.out + captured.err

    return talk


def test_the_terminal_reads_answers_shows_and_forgets(talk, chat, tmp_path):
    (tmp_path / "notes.txt").write_text("The tower is old. It is tall.")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("A text.")
    (tmp_path / "more" / "b.bin").write_bytes(b"\xff\xfe\x00")
    out = talk(f"/read {tmp_path}/notes.txt", f"/read {tmp_path}/more", "The tower is old.?", "/sources", "/documents")
    assert f"read {tmp_path}/notes.txt: 2 entries" in out
    assert f"read {tmp_path}/more/a.txt: 1 entry" in out
    assert "left out: " in out
    name = re.escape(f"{tmp_path}/notes.txt")
    assert re.search(
        rf"see\n  found in the library:\n  \[1\] {name}: The tower is old\.\n\[1\] {name} at 0 \(score 1\.00\)\nThe tower",
        out,
    )
    out = talk(f"/forget {tmp_path}/notes.txt", "/documents", "/namespace bob", "/help")
    assert f"forgot {tmp_path}/notes.txt: 2 entries (erase)" in out
    assert "namespace bob; " in out
    assert "/forget DOCUMENT" in out
    assert chat.namespace == "bob"
    assert [document.name for document in chat.library.documents] == [f"{tmp_path}/more/a.txt"]
    assert talk("/namespace default", f"/forget {tmp_path}/more/a.txt", "/sources").endswith("no answer with sources yet\n")


def test_the_terminal_says_that_the_model_is_loaded_before_the_first_answer(talk, chat, plain, monkeypatch):
    chat._model, calls = None, []
    monkeypatch.setattr(conversation, "load", lambda name: calls.append(name) or plain)
    chat.settings = Settings()
    assert "loading" not in talk("It rains.")  # which is remembered only
    assert talk("Does it rain?", "Why?").count("loading smollm2 (the first time") == 1
    assert calls == ["smollm2"]


def test_a_mistake_on_the_terminal_is_one_line_and_the_conversation_goes_on(talk, chat, tmp_path):
    for name, content in {"empty": b"", "binary": b"\xff\x00", "large": b"a" * (conversation.LARGEST + 1)}.items():
        (tmp_path / name).write_bytes(content)
    files = [f"/read {tmp_path}/{name}" for name in ("empty", "binary", "large", "none")]
    out = talk(*files, "/read", "/forget x", "/sorces", "/namespace *", "Still here.")
    lines = [line for line in out.splitlines() if line.startswith("memtx: ")]
    messages = [
        "has no text",
        "is not UTF-8",
        "larger than 2 MiB",
        "No such file",
        "give a file",
        "no document",
        "did you mean /sources",
        "the name of a namespace",
    ]
    assert len(lines) == len(messages)
    for line, message in zip(lines, messages, strict=True):
        assert message in line
    assert "I see\n" in out
    assert [document.text for document in chat.library.documents] == ["Still here."]


def test_a_prompt_that_the_model_cannot_see_loses_its_worst_sources_then_its_oldest_turns(chat, monkeypatch):
    chat.settings = dataclasses.replace(chat.settings, passages=9, window=999, max_tokens=10)
    for text in ("Bruno is my dog.", "Bruno is my old dog."):
        chat.read(text, document=text)
    answer = chat.say("Is Bruno my dog?")
    assert [source.text for source in answer.sources] == ["Bruno is my dog.", "Bruno is my old dog."]
    chat.say("Is Bruno my dog?")
    size = len(chat.prompts[-1]) + 10
    none = size - len("\n".join(["", NOTES, "- Bruno is my dog.", "- Bruno is my old dog."]))
    for room, sources, turns in ((size, 2, 1), (size - 1, 1, 1), (none, 0, 1), (none - 1, 0, 0)):
        monkeypatch.setattr(conversation, "context_of", lambda lm, room=room: room)
        chat.turns = chat.turns[:1]
        answer = chat.say("Is Bruno my dog?")
        assert len(answer.sources) == chat.prompts[-1].count("- Bruno") == sources, room
        assert chat.prompts[-1].count("I see") == turns, room
    with pytest.raises(UserError, match="the message is too long"):
        chat.say(f"{'Very ' * 99} long?")


@pytest.mark.parametrize("name", ["*", "", "a\n"])
def test_a_conversation_has_one_namespace(chat, name):
    with pytest.raises(UserError, match="the name of a namespace must have"):
        chat.namespace = name
    with pytest.raises(UserError, match="the name of a namespace must have"):
        Chat(chat.library, chat.settings, namespace=name)


def test_a_library_without_texts_has_nothing_to_quote(tmp_path):
    with pytest.raises(UserError, match="nothing to quote"):
        Chat(create_fake(tmp_path / "library", texts=False))


def test_a_library_of_another_kind_and_a_blank_message_are_refused(tmp_path, plain, chat):
    with pytest.raises(UserError, match="is a library of kind sentences, not entries"):
        Chat(chat.library, Settings(kind="entries"))
    with pytest.raises(UserError, match="is a library of kind sentences, not entries"):
        Chat(tmp_path / "library", Settings(kind="entries"))
    with pytest.raises(UserError, match="passages must be at least 0"):
        Settings(passages=-1)
    with pytest.raises(UserError, match="unknown kind of library 'x'"):
        Settings(kind="x")
    with pytest.raises(UserError, match="blank"):
        chat.say(" \n")


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["A", ":", " Ana", " is"], "Ana is"),
        ([" \n", "Answer", ": no"], "no"),
        (["A", "na is"], "Ana is"),
        (["A"], "A"),
        (["A:"], ""),
        (["Answer", " me"], "Answer me"),
        ([], ""),
        ([" ", "7: A: b"], "7: A: b"),
    ],
)
def test_a_label_before_an_answer_is_left_out(pieces, text):
    assert "".join(unlabelled(pieces)) == text
