"""A conversation is written by the model's own template, in a sandbox."""

import pytest

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError
from memtx.generate import chat

CHATML = """{% for m in messages %}
{% if loop.first and m['role'] != 'system' %}
{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}"""


def teach(template):
    tokenizer = Tokenizer("bytes", 264)
    tokenizer.chat_template = template
    return tokenizer


def test_chatml():
    messages = [{"role": "user", "content": "Hi {{ 1 }}"}]
    system, user = "<|im_start|>system\nBe brief.<|im_end|>\n", "<|im_start|>user\nHi {{ 1 }}<|im_end|>\n"
    assert chat.render(teach(CHATML), messages) == system + user + "<|im_start|>assistant\n"
    assert chat.render(teach(CHATML), messages, reply=False) == system + user
    with_system = [{"role": "system", "content": "x"}, *messages]
    assert chat.render(teach(CHATML), with_system, reply=False) == "<|im_start|>system\nx<|im_end|>\n" + user


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("", "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_templates_that_refuse_or_reach_out_are_user_errors(template, says):
    with pytest.raises(UserError, match=says):
        chat.render(teach(template), [{"role": "user", "content": "x"}])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(UserError, match=r"\.\[hf\]"):
        chat.render(teach(CHATML), [])
