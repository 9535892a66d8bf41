"""The golden of MiniLM's sentence embeddings: outputs of Hugging Face's torch code for tests/golden/hf/minilm.json.

    python tests/golden/hf/minilm.py FOLDER        FOLDER: all-MiniLM-L6-v2; needs torch and transformers 5

Mean of the real tokens' last hidden states, at length 1, as its authors' model card has it.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

FILE = Path(__file__).with_suffix(".json")
QUERIES = [
    "How do I bake bread at home?",
    "The king of Denmark was murdered by his brother.",
    "Stock markets fell sharply today.",
]
TEXTS = [
    "Mix flour, water, salt and yeast, let the dough rise, and put it into a hot oven.",
    "Claudius poured poison into the ear of old Hamlet and took his crown.",
    "Shares lost four percent after the central bank raised interest rates.",
    "A sourdough starter needs feeding with flour and water every day.",
    "The cat slept on the warm windowsill all afternoon.",
    "Investors are worried about inflation; " + "prices rise and rise, and wages do not; " * 40,
    "To be, or not to be: that is the question.",
    "Yes.",
]


def vectors(folder: str, texts: list[str]) -> torch.Tensor:
    """The vectors of texts, of length 1, in float64."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval().double()
    with torch.no_grad():
        given = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        hidden, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))


def main(folder: str) -> None:
    y = vectors(folder, QUERIES + TEXTS)
    cosine = (y[: len(QUERIES)] @ y[len(QUERIES) :].T).tolist()
    found = {"queries": QUERIES, "texts": TEXTS, "cosine": [[round(c, 7) for c in row] for row in cosine]}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
