"""`single_tokens` finds the tokens that `read` finds."""

import math
import random
import re

import numpy as np
import pytest
from testdata import real_files, trees

from specialize_jax import align
from specialize_jax.align import columns, targets

TEXTS = (
  "She sold 48/2 = <<48/2=24>>24 clips, in May alone.",
  "abababab cabbage bag a a b, working on the whole.",
  "Natalia's stand: caf\u00e9 $12.50, no more\n\n#### 72",
  "\u65e5\u672c\u8a9e and caf\u00e9s in one line",
  "Zo\u00e9 sold 12 ros\u00e9s a mile",
  "  leading  and\u00a0trailing \u00bd space \n",
)
POOL = [
  b" the", b"the", b" 1", b"12", b"\n", b" ", b"  ", b".", b",", b"s", b" is",
  b"x", b"ing", b"ing it", b" two words", b"<", b"<<", b"$", b"ab", b" ab",
  b"a", b"b", b"\xc3", b"\xa9", b"\xc3\xa9", b"\xc2\xa0", b"\xc2\xa0x",
  "\u65e5".encode(), " \u65e5".encode(),
]  # fmt: skip
STUDENTS = [
  pytest.param(trees.tiny_student, id="tiny"),
  pytest.param(real_files.t5, id="t5"),
]


def cut(text, rng):
  """Splits a text at spaces, and some of the words again at random bytes."""
  for word in re.findall(r" ?[^\s]+|\s+", text):
    rest = word.encode()
    while rest:
      size = rng.randint(1, len(rest)) if rng.random() < 0.3 else len(rest)
      yield rest[:size]
      rest = rest[size:]


def samples(rng, copies):
  """Returns samples whose alternatives go on with, cut or end a word."""
  for text in TEXTS * copies:
    tokens = []
    for spelling in cut(text, rng):
      top = rng.sample(POOL, 6) + [spelling + b"s", spelling[:1]]
      tokens.append(
        targets.TeacherToken(
          spelling=spelling,
          log_prob=math.log(0.5),
          top=tuple((other, math.log(0.05)) for other in top),
        )
      )
    yield tokens, text


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("later", [0, 1, 2])
def test_a_single_token_is_the_one_that_reading_finds(student, later):
  aligner = align.Aligner(student(), mode="whitespace")
  many = list(samples(random.Random(7), copies=60))
  batch = aligner.batch_of(columns.teacher_columns(many, aligner.table))
  # The first tokens of the word in which a step begins, or of the next word.
  at = batch.known.base_L + later
  steps = np.flatnonzero(at < batch.student.offsets[batch.teacher.sample_L + 1])
  at = at[steps]
  rows = batch.teacher.top_rows_KL.take(steps, axis=1)
  found, left = batch.single_tokens(steps, at, rows, np.ones(rows.shape, bool))
  assert (found[left] == -1).all()
  k, m = np.nonzero(~left)
  assert len(m) > 200
  read = batch.read(steps[m], rows[k, m])
  unknown = aligner.words.student.unknown_id
  past = read.at_N - at[m]
  expected = np.full(len(m), -1)
  replaced = (past == 0) & (read.remaining_N == 1) & (read.own_N != unknown)
  expected[replaced] = read.own_N[replaced]
  kept = (past == 1) & (read.remaining_N == 0)
  kept &= batch.student.ids_P[at[m]] != unknown
  expected[kept] = batch.student.ids_P[at[m]][kept]
  np.testing.assert_array_equal(found[k, m], expected)
  assert (expected >= 0).any()
