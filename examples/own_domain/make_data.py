"""Writes the data of this example: tickets as JSONL, and a vocabulary.

    python make_data.py

What it wrote is committed, so that nobody has to run it.
"""

import io
import json
import pathlib
import random
import tempfile

import sentencepiece
import tickets

DATA = pathlib.Path(__file__).parent / "data"
# Questions of another ability, of which a student that starts from nothing
# knows nothing.
COLORS = ("red", "green", "blue", "white")
SIZES = {
  "train": ("mail", 300),
  "validation": ("mail", 60),
  "test": ("mail", 150),
  "phone_validation": ("phone", 60),
  "phone_test": ("phone", 100),
  "chat_validation": ("chat", 60),
  "chat_test": ("chat", 100),
}


def main():
  """Writes every file."""
  DATA.mkdir(exist_ok=True)
  rng = random.Random(19)
  seen, texts = set(), []
  for name, (style, size) in SIZES.items():
    rows = []
    while len(rows) < size:
      ticket, queue = tickets.write(style, rng)
      if ticket in seen:
        continue
      seen.add(ticket)
      rows.append({"question": ticket, "answer": queue})
      texts += [ticket, tickets.rationale(ticket, len(texts))]
    _write(name, rows)
  colors = [
    {"question": f"Which color is number {i % 4} of {', '.join(COLORS)}?",
     "answer": COLORS[i % 4], "question_id": f"color {i}"}
    for i in range(4)
  ]  # fmt: skip
  _write("colors", colors)
  texts += [row["question"] for row in colors]
  texts += ["Ticket:", "Think step by step.", "Queue:"] * 100
  (DATA / "vocabulary.model").write_bytes(_vocabulary(texts))


def _write(name, rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (DATA / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _vocabulary(texts):
  """Trains a model laid out as T5's, to which a line break is a space."""
  model = io.BytesIO()
  with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
    rules.write("A\t20\nD\t20\n9\t20\n")
    rules.flush()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type="unigram",
      vocab_size=300,
      hard_vocab_limit=False,
      character_coverage=1.0,
      byte_fallback=False,
      normalization_rule_tsv=rules.name,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  return model.getvalue()


if __name__ == "__main__":
  main()
