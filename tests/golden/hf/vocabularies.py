"""Goldens of tokenizers: tiny vocabularies of our own text in the files of four families, and the ids that Hugging Face gives.

    python tests/golden/hf/vocabularies.py       in an environment with transformers and sentencepiece; a few seconds

Writes vocabularies/FAMILY/ and vocabularies/tokens.json: by family, for each text, its ids without and with the tokens that
frame it and the text that HF gives back. Writes vocabularies/settings.json: the same for vocabularies with other small files
beside them, such as added tokens. From real files, nothing of which is kept here:

    python tests/golden/hf/vocabularies.py PATH OUT.json       a folder or .gguf file -> the same, by AutoTokenizer
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers as hf
import transformers

FOLDER = Path(__file__).parent / "vocabularies"
CORPUS = """The lighthouse keeper wrote a line in the log each night: wind, rain, and the number of ships.
In 1984 he counted 1207 of them; the year after only 311. "They don't come any more," he said.
His daughter, who'd read every page, knew where the numbers stopped and what they meant.
Zwölf Boxkämpfer jagen Eva quer über den großen Sylter Deich. Où est l'hôtel? El niño comió piñata.
def total(ships): return sum(ship.weight for ship in ships if ship.name != "unknown")  # tonnes
""".splitlines()
TEXTS = [
    "The keeper counted 1207 ships.",
    "don't WE'LL they've",
    " two  blanks\r\n\tand a tab \n\n\n",
    "Ünïcödé 🦜 日本語 piñata",
    "x = [i**2 for i in range(10)]  # $12,345.67!",
    "naïve cafe\u0301 Deich",
    "<unknown> [weight]",
    "",
]
SPELLED = [
    "The keeper counted 1207 ships, and cafe\u0301.",
    "a<tool>b",
    "a  <tool>  b\n<tool>\nc",
    "<|im_start|>user\nwho<|im_end|> <|im_start|> he",
    "<tool> ships",
    "ship ships Ship <pad>e<unk> e",
    "",
]


def main() -> None:
    found = {}
    for family, (make, load) in FAMILIES.items():
        folder = FOLDER / family
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        found[family] = _tokens(load(folder), TEXTS)
    (FOLDER / "tokens.json").write_text(json.dumps({"texts": TEXTS, **found}, indent=1, ensure_ascii=False) + "\n")
    cases = [_case(name, family, files) for name, family, files in _cases()]
    (FOLDER / "settings.json").write_text(json.dumps({"texts": SPELLED, "cases": cases}, ensure_ascii=False) + "\n")


def _case(name: str, family: str, files: dict[str, dict]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER / family, folder, dirs_exist_ok=True)
        for file, content in files.items():
            (Path(folder) / file).write_text(json.dumps(content))
        read = transformers.AutoTokenizer.from_pretrained(folder)
        return {"name": name, "family": family, "files": files, "size": len(read), "tokens": _tokens(read, SPELLED)}


def _cases():
    classes = {"GPT2": "byte_bpe", "Qwen2": "byte_bpe", "Bert": "wordpiece", "Llama": "llama", "T5": "t5"}
    for name, family in classes.items():
        config = {"tokenizer_class": f"{name}Tokenizer", **MORE.get(name, {})}
        size = _case(name, family, {"tokenizer_config.json": config})["size"]
        yield f"{name}: added_tokens.json", family, _listed(config, size)
        yield f"{name}: added_tokens_decoder", family, _decoder(config, size)
        yield f"{name}: special_tokens_map.json", family, {"tokenizer_config.json": config, **_named("<tool>")}
        if name != "Bert":
            yield f"{name}: a blank first", family, _decoder(config | {"add_prefix_space": True}, size)
        if name == "Llama":
            yield "Llama: no blank first", family, _decoder(config | {"add_prefix_space": False}, size)
            yield "Llama: legacy", family, _decoder(config | {"legacy": True}, size)
    yield "GPT2: framed", "byte_bpe", {"tokenizer_config.json": FRAMED}
    yield "Bert: accents, no lower case", "wordpiece", {"tokenizer_config.json": CASED}


MORE = {"T5": {"extra_ids": 4}, "Llama": {"add_bos_token": True}}
CASED = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True}
FRAMED = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "add_eos_token": True, "bos_token": "<|begin|>"}


def _listed(config: dict, size: int) -> dict[str, dict]:
    named = {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}
    added = {"<tool>": size, "<|im_start|>": size + 1, "<|im_end|>": size + 2}
    return {"tokenizer_config.json": config | named, "added_tokens.json": added}


def _decoder(config: dict, size: int) -> dict[str, dict]:
    plain = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "special": False}
    added = [
        plain | {"content": "<tool>", "rstrip": True},
        plain | {"content": "<|im_start|>", "lstrip": True, "normalized": False, "special": True},
        plain | {"content": "<|im_end|>", "normalized": False, "special": True},
        plain | {"content": "ship", "single_word": True},
    ]
    return {"tokenizer_config.json": config | {"added_tokens_decoder": {str(size + i): token for i, token in enumerate(added)}}}


def _named(mask: str) -> dict[str, dict]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"special_tokens_map.json": {"pad_token": "<pad>", "mask_token": {"content": mask, **flags}}}


def _tokens(tokenizer, texts: list[str]) -> list[dict]:
    out = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        out.append({"ids": ids, "framed": tokenizer(text).input_ids, "back": back})
    return out


def _wordpiece(folder: Path) -> None:
    model = hf.BertWordPieceTokenizer()
    model.train_from_iterator(CORPUS, vocab_size=300, min_frequency=1, show_progress=False)
    model.save_model(str(folder))


def _byte_bpe(folder: Path) -> None:
    model = hf.ByteLevelBPETokenizer()
    model.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False)
    model.save_model(str(folder))


def _sentencepiece(folder: Path, file: str, **options) -> None:
    prefix = str(folder / "made")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=prefix, hard_vocab_limit=False, minloglevel=2, **options
    )
    (folder / "made.vocab").unlink()
    (folder / "made.model").rename(folder / file)


def _t5(folder: Path) -> None:
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    rules = folder / "rules.tsv"  # as T5's own table does: tabs and ends of lines are blanks
    rules.write_text("9\t20\nA\t20\nD\t20\n")
    _sentencepiece(folder, "spiece.model", model_type="unigram", vocab_size=120, normalization_rule_tsv=str(rules), **ids)
    rules.unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 4}) + "\n")


def _llama(folder: Path) -> None:
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}
    _sentencepiece(folder, "tokenizer.model", model_type="bpe", vocab_size=400, byte_fallback=True, **identity)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")


FAMILIES = {
    "wordpiece": (_wordpiece, lambda folder: transformers.BertTokenizerFast.from_pretrained(folder)),
    "byte_bpe": (_byte_bpe, lambda folder: transformers.GPT2TokenizerFast.from_pretrained(folder)),
    "t5": (_t5, lambda folder: transformers.T5TokenizerFast.from_pretrained(folder)),
    "llama": (_llama, lambda folder: transformers.LlamaTokenizerFast.from_pretrained(folder)),
}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        where = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
        read = transformers.AutoTokenizer.from_pretrained(where[0], **where[1])
        Path(sys.argv[2]).write_text(json.dumps({"texts": TEXTS, "found": _tokens(read, TEXTS)}))
    else:
        main()
