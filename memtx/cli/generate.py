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
"""


def define(values):
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("model", None, "", flag_values=values)
    flags.DEFINE_string("prompt", None, "", flag_values=values)
    flags.DEFINE_string("prompt_file", None, "", flag_values=values)
    flags.DEFINE_integer("max_tokens", 200, "", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "", flag_values=values)
    flags.DEFINE_float("top_p", 0.95, "", flag_values=values)
    flags.DEFINE_integer("seed", 0, "", flag_values=values)


def act(values):
    from memtx.generate import Sampling, generate
    from memtx.loading import load

    sampling = Sampling(values["temperature"].value, values["top_k"].value, values["top_p"].value)
    if values["model"].value and values["workdir"].value:
        raise UserError("give either --workdir or --model, not both")
    loaded = load(values["model"].value or needed(values, "workdir", "runs/first"))
    prompt = _prompt(values)
    print(prompt, end="", flush=True)
    for text in generate(
        loaded.lm,
        loaded.params,
        loaded.tokenizer,
        prompt,
        max_tokens=values["max_tokens"].value,
        sampling=sampling,
        seed=values["seed"].value,
        chunk=loaded.config.data.segment,
    ):
        print(text, end="", flush=True)
    print()


def _prompt(values) -> str:
    text, path = values["prompt"].value, values["prompt_file"].value
    if text is not None and path is not None:
        raise UserError("give either --prompt or --prompt_file, not both")
    if path is None:
        return text or ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --prompt_file: {error}") from None
