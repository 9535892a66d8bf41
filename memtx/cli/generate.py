"""Generate text with a trained run or a pretrained model.

  memtx generate --workdir=runs/xl --prompt='HAMLET: '
  memtx generate --model=smollm2 --prompt='Once upon a time' --top_p=0.9
  memtx generate --memory=notes --prompt='The tower was built in' --explain=page.html

--beams searches for the likeliest text instead of sampling. --explain writes a page that shows, for each token of the text,
which entries of the memory the model read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from memtx.cli.options import as_utf8, define_writing, needed, print_text, writing
from memtx.errors import UserError, optional
from memtx.progress import Progress

if TYPE_CHECKING:
    from memtx.library import Library
    from memtx.library.explain import Explanation
    from memtx.runs.load import Loaded


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""

    def string(name: str, text: str) -> None:
        flags.DEFINE_string(name, None, text, flag_values=values)

    string("workdir", "The folder `DIR` of a trained run. Give one of --workdir, --model and --memory.")
    string("model", "A pretrained `MODEL`: smollm2, a Hugging Face folder, a .gguf file, or a name of the hub.")
    string("memory", "The folder `DIR` of a library, whose documents its model remembers (see memtx memory).")
    flags.DEFINE_multi_string("namespace", [], "A namespace of --memory, by its `NAME`. Default: default", flag_values=values)
    string("prompt", "The `TEXT` to continue. Default: none.")
    string("prompt_file", "A `FILE` with the prompt, which may have any length.")
    define_writing(values, temperature=0.8, length="200, or fewer if the model has no more positions")
    flags.DEFINE_multi_string("stop", [], "End at this `TEXT`", flag_values=values)
    flags.DEFINE_bool("chat", False, "Format the prompt as a message with the chat template of the model.", flag_values=values)
    string("source", "The `TEXT` for the encoder of an encoder-decoder.")
    string(
        "explain",
        "Write a page to `FILE`, such as page.html, that shows from which entries each token of the text was predicted.",
    )
    text = "The number of tokens that full attention of a --model keeps. Default: 2048."
    flags.DEFINE_integer("context", None, text, lower_bound=1, flag_values=values)


def act(values) -> None:
    """Print the prompt and the text as it is written. Raises UserError for a mistake that the user can fix."""
    from memtx.generate import chat, generate

    options = writing(values)
    loaded, explain = _load(values, source := _text(values["source"].value))
    prompt = _prompt(values)
    if values["chat"].value:
        prompt = chat.render(loaded.tokenizer, [{"role": "user", "content": prompt}])
    else:
        print(prompt, end="", flush=True)
    options |= {"specials": values["chat"].value, "stop": [*map(as_utf8, values["stop"].value)]}
    options["state"] = loaded.state if values["memory"].value else None
    if page := values["explain"].value:
        explanation = _write_explained(loaded, prompt, source, options, explain)
        explanation.write(page)
        if explanation.closed:
            print(f"memtx: all gates are 0, so nothing came from the memory; {page} says more", file=sys.stderr)
        print(f"memtx: wrote {page}", file=sys.stderr)
        return
    for text in generate(loaded.lm, loaded.params, loaded.tokenizer, prompt, source=source, **options):
        print_text(text)
    print()


def _load(values, source: str | None) -> tuple[Loaded, Callable[..., Explanation]]:
    """Return the model that the flags name, and the function that explains its texts."""
    from memtx.library import SPACE, open
    from memtx.library.explain import explain, explain_with_source
    from memtx.runs.load import load, load_run

    model, workdir, memory, context = (values[name].value for name in ("model", "workdir", "memory", "context"))
    if sum(map(bool, (model, workdir, memory))) > 1:
        raise UserError("give only one of --workdir, --model and --memory")
    if context and not model:
        raise UserError("--context is for --model; the config of a run sets its context")
    namespaces = values["namespace"].value
    if namespaces and not memory:
        raise UserError("--namespace is for --memory")
    if memory:
        library, spaces = open(memory), namespaces or [SPACE]
        if not library.record.visible(spaces):
            raise UserError(f"no documents in the namespace {', '.join(spaces)}; {library.record.spaces()}")
        return library.model(namespace=spaces), partial(_explain_library, library, namespace=spaces)
    kept = {"context": context} if context else {}
    loaded = load(model, **kept) if model else load_run(needed(values, "workdir", "runs/first"))
    return loaded, partial(explain, loaded) if source is None else partial(explain_with_source, loaded, source=source)


def _explain_library(library: Library, tokens: Sequence[int], **options) -> Explanation:
    """Return the explanation of a library, with a display of its progress."""
    with Progress("document") as progress:
        progress(0, 0)
        return library.explain(tokens, progress=progress, **options)


def _write_explained(
    loaded: Loaded, prompt: str, source: str | None, options: dict, explain: Callable[..., Explanation]
) -> Explanation:
    """Print the text, and return the explanation of its tokens."""
    from memtx.generate import complete

    optional("jinja2", "report")  # before the text is written
    sources = None if source is None else [source]
    done = complete(loaded.lm, loaded.params, loaded.tokenizer, [prompt], source=sources, **options)
    print_text(f"{done.texts[0]}\n")
    return explain([*done.prompts[0], *done.tokens[0]], first=len(done.prompts[0]))


def _text(argument: str | None) -> str | None:
    return argument and as_utf8(argument)


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
