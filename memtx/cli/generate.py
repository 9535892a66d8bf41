"""`memtx generate`."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from memtx.cli.options import needed
from memtx.errors import UserError

HELP = """\
  memtx generate  text from a trained run, or from a pretrained model
      --workdir=DIR                   or --model=smollm2, a Hugging Face folder, a .gguf file, a name of the hub
      --prompt=TEXT                   or --prompt_file=FILE, of any length
      --max_tokens=200  --temperature=0.8  --top_k=0  --top_p=0.95  --seed=0
      --beams=4  --length_penalty=1.0       the likeliest text, instead of drawing
      --stop=TEXT                           ends it; may be given again
      --chat                                the prompt is a message to a model that was taught conversations
      --source=TEXT                         what an encoder-decoder's encoder reads
      --context=2048                        tokens that attention of a --model keeps, those of a source among them
"""


def define(values):
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("model", None, "", flag_values=values)
    flags.DEFINE_string("prompt", None, "", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "", flag_values=values)
    flags.DEFINE_integer("max_tokens", None, "", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "", flag_values=values)
    flags.DEFINE_float("top_p", 0.95, "", flag_values=values)
    flags.DEFINE_integer("seed", 0, "", lower_bound=0, upper_bound=2**32 - 1, flag_values=values)
    flags.DEFINE_integer("beams", 1, "", lower_bound=1, flag_values=values)
    flags.DEFINE_float("length_penalty", 1.0, "", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "", flag_values=values)
    flags.DEFINE_bool("chat", False, "", flag_values=values)
    flags.DEFINE_string("source", None, "", flag_values=values)
    flags.DEFINE_integer("context", None, "", lower_bound=1, flag_values=values)


def act(values):
    from memtx.generate import Sampling, chat, generate
    from memtx.runs.load import load, load_run

    sampling = Sampling(values["temperature"].value, values["top_k"].value, values["top_p"].value)
    if values["beams"].value > 1 and not values["temperature"].present:
        sampling = Sampling(temperature=0)
    model = values["model"].value
    if model and values["workdir"].value:
        raise UserError("give either --workdir or --model, not both")
    context = values["context"].value
    if context and not model:
        raise UserError("--context is for --model: a run keeps what its config says")
    kept = {"context": context} if context else {}
    loaded = load(model, **kept) if model else load_run(Path(needed(values, "workdir", "runs/first")))
    prompt = _prompt(values)
    if values["chat"].value:
        prompt = chat.render(loaded.tokenizer, [{"role": "user", "content": prompt}])
    else:
        print(prompt, end="", flush=True)
    options = {name: values[name].value for name in ("max_tokens", "seed", "beams", "length_penalty")}
    options |= {"source": _text(values["source"].value), "stop": [*map(_text, values["stop"].value)]}
    for text in generate(
        loaded.lm, loaded.params, loaded.tokenizer, prompt, sampling=sampling, specials=values["chat"].value, **options
    ):
        print(text, end="", flush=True)
    print()


def _text(argument: str | None) -> str | None:
    """An argument as UTF-8, whatever the locale. Python reads bytes that the locale does not have as lone surrogates."""
    return argument and argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _prompt(values) -> str:
    text, path = _text(values["prompt"].value), values["prompt_file"].value
    if text is not None and path is not None:
        raise UserError("give either --prompt or --prompt_file, not both")
    if path is None:
        return text or ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --prompt_file: {error}") from None
