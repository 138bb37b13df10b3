"""Vocabularies of nonsense are refused, or used; none ends the process.

In processes of their own, since what is tried are crashes of libraries.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest
from sentencepiece import sentencepiece_model_pb2 as protos
from testdata import tiny_vocabulary

from specialize_jax import errors
from specialize_jax.align import hugging_face, student
from specialize_jax.checkpoints import tokenizers as checkpoint_tokenizers
from specialize_jax.decoding import vocabulary

_TEXTS = (
  "Ann has 3 pens",
  "",
  "½ﬁ Ⅷ \u0344 ａｂ㈠",
  "a" * 40 + "!",
  "\x00 \ud7ff",
)


def _nonsense_model(rng):
  """A SentencePiece model of which something is wrong."""
  model = protos.ModelProto()
  model.ParseFromString(tiny_vocabulary.model())
  kind = rng.randrange(6)
  if kind == 0:
    content = bytearray(model.SerializeToString())
    for _ in range(rng.randint(1, 40)):
      content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)
  if kind == 1:
    charsmap = bytearray(
      model.normalizer_spec.precompiled_charsmap or b"\0" * 9
    )
    for _ in range(rng.choice([1, 40, 400])):
      charsmap[rng.randrange(len(charsmap))] = rng.randrange(256)
    model.normalizer_spec.precompiled_charsmap = bytes(charsmap)
  if kind == 2:
    size = rng.choice([0, 3, 4, 100, 4096])
    model.normalizer_spec.precompiled_charsmap = rng.choice(
      [size, 2**31, 0]
    ).to_bytes(4, "little") + rng.randbytes(size)
  if kind == 3:
    for piece in model.pieces:
      piece.score = rng.choice([float("nan"), float("inf"), -1e38, piece.score])
      piece.type = rng.choice([1, 2, 3, 4, 5, 6, piece.type])
  if kind == 4:
    model.trainer_spec.model_type = rng.randint(1, 4)
    model.trainer_spec.unk_id = rng.choice([-1, 0, 10**6])
    model.trainer_spec.byte_fallback = True
  if kind == 5:
    del model.pieces[rng.randrange(len(model.pieces)) :]
  return model.SerializeToString()


def _nonsense_json(rng):
  """A tokenizer.json of which something is wrong."""
  content = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {
      "type": "Metaspace",
      "replacement": "▁",
      "prepend_scheme": "always",
      "split": True,
    },
    "post_processor": None,
    "decoder": None,
    "model": {
      "type": "BPE",
      "unk_token": "a",
      "fuse_unk": False,
      "byte_fallback": False,
      "vocab": {"a": 0, "▁": 1, "▁a": 2, "n": 3},
      "merges": [["▁", "a"]],
    },
  }
  junk = (None, -1, 2**32, 2**64, 1e308, "", "x" * 999, [], {}, [[]])
  for _ in range(rng.randint(1, 3)):
    place = rng.choice(
      [content, content["model"], content["pre_tokenizer"], content["model"]]
    )
    if isinstance(place, dict) and place:
      place[rng.choice(sorted(place))] = rng.choice(
        (
          *junk,
          {"type": "Precompiled", "precompiled_charsmap": "////AAAA"},
          {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"},
          {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
          {"type": "FixedLength", "length": 0},
          {"a": 2**32 - 1, "▁": 0, "▁a": 0},
          [["q", "zz"]],
        )
      )
    content["model"] = content["model"] or {}
    content["pre_tokenizer"] = content["pre_tokenizer"] or {}
  return json.dumps(content).encode()


def _use(name, content, folder):
  """Loads a vocabulary in every way that we do, and uses it."""
  file = folder / name
  file.write_bytes(content)
  opened = []
  loaders = [vocabulary.from_file]
  if name.endswith(".json"):
    loaders.append(hugging_face.HuggingFaceStudent.from_file)
  else:
    loaders.append(student.SentencePieceStudent.from_file)
    loaders.append(checkpoint_tokenizers.from_sentencepiece)
  for load in loaders:
    try:
      opened.append(load(file))
    except errors.UserError:
      continue
  for one in opened:
    for text in _TEXTS:
      if hasattr(one, "decode"):
        one.decode(one.encode(text))
      elif hasattr(one, "encode_many"):
        one.encode_many([text])
        one.encode_with_spans(text)


def _ends(name, make, folder):
  """How the processes ended that tried them, by the seed, if not well."""
  ends = {}
  for seed in range(80):
    content = make(random.Random(seed))
    pid = os.fork()
    if not pid:  # in a child, whatever happens ends here
      status = 1
      try:
        signal.alarm(20)
        _use(name, content, folder)
        status = 0
      finally:
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    ends[seed] = os.waitstatus_to_exitcode(status)
  return {seed: end for seed, end in ends.items() if end}


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_no_vocabulary_of_nonsense_ends_the_process(name, tmp_path):
  tests = pathlib.Path(__file__).parents[1]
  tried = subprocess.run(
    [sys.executable, __file__, name, tmp_path],
    env=os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}"},
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(tried.stdout) == {}, tried.stderr[-3000:]


if __name__ == "__main__":
  make = {"spiece.model": _nonsense_model, "tokenizer.json": _nonsense_json}
  name, folder = sys.argv[1:]
  print(json.dumps(_ends(name, make[name], pathlib.Path(folder))))
