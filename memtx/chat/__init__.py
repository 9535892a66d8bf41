"""Conversations with a memory that lasts: a library, and a language model that answers from it.

chat = Chat("notes")                              opens the library in this folder, or makes one
chat.read(Path("report.txt"))                     reads a document into it
answer = chat.say("My dog is called Bruno.")      remembers the message, and answers
answer.text, answer.sources                       the text, and the entries that it came from
chat.forget(document="report.txt")                forgets with a certificate, also in the conversation

A conversation keeps nothing but the library. Another process, or `memtx memory`, can open it.
"""

from memtx.chat.conversation import Answer, Chat, Settings

__all__ = ["Answer", "Chat", "Settings"]
