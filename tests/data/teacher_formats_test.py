"""A prompt's tokens are those of its text, and rows come out unpacked."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import (
  benchmarks,
  sources,
  teacher_formats,
  teacher_source,
  vocabularies,
)
from specialize_jax.records import packed_rows


@pytest.fixture(scope="module")
def t5():
  vocabulary = vocabularies.t5()
  try:
    vocabulary.encode("a")
  except errors.UserError as error:
    pytest.skip(str(error))
  return vocabulary


def tokens_of_parts(texts, vocabulary):
  table = teacher_formats.tokenize_texts(texts, vocabulary)
  which = tf.range(len(texts), dtype=tf.int64)[None]
  ids, _ = teacher_formats._gather(table, which, vocabulary.eos_id)
  return ids.numpy().tolist()


def parts(demonstrations, question, data_format):
  return [
    *(formats.render_demonstration(one, data_format) for one in demonstrations),
    formats.render_question(question, data_format),
  ]


@pytest.mark.parametrize(
  "data_format",
  [formats.IN_CONTEXT_ANSWER_ONLY, formats.IN_CONTEXT_CHAIN_OF_THOUGHT],
)
def test_real_prompts_are_tokenized_as_their_whole_text(t5, data_format):
  shown = benchmarks.demonstrations()
  for start in range(0, len(shown) - 5, 500):
    *four, asked = shown[start : start + 5]
    texts = parts(four, asked.question, data_format)
    whole = t5.encode("".join(texts))
    assert tokens_of_parts(texts, t5) == [*whole, t5.eos_id], start


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=12), min_size=2, max_size=4))
@example(["", "0\x1f0"])
def test_prompts_of_any_characters_are_too(t5, texts):
  *shown, question = texts
  data_format = formats.IN_CONTEXT_CHAIN_OF_THOUGHT
  written = parts(
    [
      formats.Demonstration(question=text, rationale=text, answer=text)
      for text in shown
    ],
    question,
    data_format,
  )
  whole = t5.encode("".join(written))
  assert tokens_of_parts(written, t5) == [*whole, t5.eos_id]


@pytest.mark.parametrize("vocab_size", [65_536, 152_000])
def test_rows_are_unpacked_as_numpy_unpacks_them(vocab_size):
  rng = np.random.default_rng(0)
  lengths = [3, 0, 5, 1]
  used = np.arange(5) < rng.integers(0, 6, 9)[:, None]
  positions = packed_rows.Positions(
    lengths=np.array(lengths),
    target_ids=rng.integers(1, vocab_size, 9).astype(np.int32),
    top_ids=np.where(used, rng.integers(1, vocab_size, (9, 5)), 0).astype(
      packed_rows.id_dtype(vocab_size)
    ),
    top_log_probs=np.where(used, -rng.random((9, 5)), -np.inf).astype(
      np.float16
    ),
    mask=rng.integers(0, 2, 9).astype(np.uint8),
  )
  positions.target_ids[::2] = positions.top_ids[::2, 0]
  truncated = [True, False, False, True]
  rows = packed_rows.pack(
    positions, questions=[0] * 4, samples=[0] * 4, truncated=truncated
  )
  table = teacher_source.RowTable(
    question=tf.zeros([4], tf.int32),
    sample=tf.zeros([4], tf.int64),
    flags=tf.constant([row.flags for row in rows]),
    ids=tf.constant([row.ids for row in rows]),
    log_probs=tf.constant([row.log_probs for row in rows]),
  )
  order = [1, 2, 1, 0, 3, 2]
  got = teacher_formats._TeacherTargets(table, 1).of(tf.constant(order))
  ends = got.ends.numpy()
  assert np.diff(ends).tolist() == [
    lengths[row] + (not truncated[row]) for row in order
  ]
  starts = np.cumsum([0, *lengths])
  for place, row in enumerate(order):
    mine = slice(starts[row], starts[row] + lengths[row])
    expected = {
      "targets": [*positions.target_ids[mine], 1],
      "teacher_top_ids": [*positions.top_ids[mine], [1, 0, 0, 0, 0]],
      "teacher_top_probs": [
        *np.exp(positions.top_log_probs[mine].astype(np.float32)),
        [1, 0, 0, 0, 0],
      ],
      "teacher_top_mask": [*positions.mask[mine], 0],
    }
    for name, value in expected.items():
      found = got.values[name].numpy()[ends[place] : ends[place + 1]]
      kept = value[: lengths[row] + (not truncated[row])]
      np.testing.assert_allclose(found, kept, rtol=1e-6, err_msg=name)


def test_a_vocabulary_whose_pieces_cross_spaces_reads_whole_texts(
  tmp_path, world
):
  import sentencepiece

  sentences = ["Q: the cat sat on the mat", "Let's think step by step"] * 40
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_prefix=str(tmp_path / "crossing"),
    vocab_size=60,
    hard_vocab_limit=False,
    split_by_whitespace=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  sources.set_data_dir(tmp_path)
  try:
    vocabulary = vocabularies.LocatedSentencePieceVocabulary("crossing.model")
    questions = teacher_source.QuestionTable(
      ids=["a"], texts=["the cat sat on the mat"], answers=["1"]
    )
    prompts = teacher_formats._Prompts(
      questions, vocabulary, formats.ZERO_SHOT_CHAIN_OF_THOUGHT, None
    )
    texts, runs = prompts.of(tf.constant([0]), tf.zeros([1, 0], tf.int64))
    text = texts.numpy()[0].decode()
    assert runs.values["inputs"].numpy().tolist() == [
      *vocabulary.encode(text),
      1,
    ]
    assert any(
      "\u2581" in p[1:]
      for p in map(vocabulary.tokenizer.id_to_piece, range(60))
    )
  finally:
    sources.set_data_dir(world)
