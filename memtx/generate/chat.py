"""Prompts of conversations, written by the model's own Jinja template in a sandbox."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError, optional


def render(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
    """Return the prompt of messages {"role": "system" | "user" | "assistant", "content": text}. Read it with `specials=True`.

    reply: whether the prompt ends with the start of the model's answer.
    Raises UserError if the tokenizer has no template, or if the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name} has no chat template; give the model a prompt instead of messages")
    jinja2 = optional("jinja2")
    sandbox = optional("jinja2.sandbox").ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    names = {id: name for name, id in tokenizer.specials.items()}
    tokens = {"bos_token": names.get(tokenizer.bos, ""), "eos_token": names.get(tokenizer.ending, "")}
    try:
        template = sandbox.from_string(tokenizer.chat_template)
        return template.render(messages=[dict(m) for m in messages], add_generation_prompt=reply, **tokens)
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template of {tokenizer.name} refuses the conversation: {error}") from None


def without_specials(tokenizer: Tokenizer, text: str) -> str:
    """Return a text without the names of special tokens, which would otherwise end its message and begin another."""
    while found := [name for name in tokenizer.specials if name in text]:
        for name in found:
            text = text.replace(name, "")
    return text


def _refuse(message: str):
    raise optional("jinja2").TemplateError(message)
