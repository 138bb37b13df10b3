"""The entry point on real samples: what the paper's code gave, and coverage."""

import functools
import json
import math
import operator
import re

import pytest
from testdata import real_files, trees

from specialize_jax import align as align_lib
from specialize_jax import errors
from specialize_jax.align import coverage, targets


@functools.cache
def released():
  """The 40 released samples, prompt's tail and stop left out."""
  path = real_files.find("codex", "gsm8k_train_0.json")
  return json.loads(path.read_bytes())


def tokens_of(entry):
  return [
    targets.TeacherToken(
      spelling=sampled.encode(),
      log_prob=_log(prob),
      top=tuple((token.encode(), _log(value)) for token, value in top),
    )
    for (sampled, prob), *top in entry["steps"][2:-2]
  ]


def _log(prob):
  return math.log(prob) if prob > 0 else -math.inf


def align(tokens, mode):
  text = b"".join(token.spelling for token in tokens).decode()
  return trees.align(tokens, text, real_files.t5(), mode)


def coverage_of(many_tokens, mode):
  samples = [
    (tokens, b"".join(token.spelling for token in tokens).decode())
    for tokens in many_tokens
  ]
  aligner = align_lib.Aligner(real_files.t5(), mode=mode)
  return functools.reduce(
    operator.add,
    (
      coverage.Coverage.of_batch(
        aligner.align(samples[at : at + align_lib.BATCH_SIZE])
      )
      for at in range(0, len(samples), align_lib.BATCH_SIZE)
    ),
  )


def gsm8k_solutions(count, answer="\nThe answer is "):
  """Solutions without calculator marks, in code-davinci-002's tokens."""
  lines = real_files.find("gsm8k", "train.jsonl").read_text().splitlines()
  for line in lines[:count]:
    solution = re.sub(r"<<.*?>>", "", json.loads(line)["answer"])
    text = solution.replace("\n#### ", answer)
    yield trees.plain_tokens(real_files.p50k(text))


def test_the_paper_mode_equals_the_papers_code_entry_by_entry():
  student = real_files.t5()
  for entry in released():
    aligned = align(tokens_of(entry), "paper")
    found = [
      [
        [student.id_to_piece(index), pytest.approx(math.exp(log_prob))]
        for index, log_prob in zip(ids, log_probs, strict=True)
        if index != 0
      ]
      for ids, log_probs in zip(
        aligned.top_ids_TC.tolist(),
        aligned.top_log_probs_TC.tolist(),
        strict=True,
      )
    ]
    assert found == entry["paper_alignment"], entry["sample"]
    assert len(aligned.ids_T) == len(entry["paper_alignment"])
  assert len(released()) == 40


def test_marginal_keeps_the_likelihood_of_the_real_samples(capsys):
  # Only white space that could stand for the sampled white space counts as it.
  every, visible, found = 0.0, 0.0, 0.0
  for entry in released():
    tokens = tokens_of(entry)
    aligned = align(tokens, "marginal")
    full = sum(token.log_prob for token in tokens)
    seen = sum(t.log_prob for t in tokens if t.spelling.strip())
    likelihood = log_likelihood(aligned)
    assert full - 1e-9 <= likelihood <= seen + 1e-9, entry["sample"]
    every, visible, found = every + full, visible + seen, found + likelihood
  with capsys.disabled():
    print(
      f"\nlog-likelihood of the 40 samples: all teacher tokens {every:.2f},"
      f" marginal targets {found:.2f}, without white space {visible:.2f}"
    )
  assert every < found < visible


def log_likelihood(aligned):
  """Sums what the targets say of the sampled text's own tokens."""
  return sum(
    log_probs[ids.index(own)]
    for own, ids, log_probs in zip(
      aligned.ids_T.tolist(),
      aligned.top_ids_TC.tolist(),
      aligned.top_log_probs_TC.tolist(),
      strict=True,
    )
  )


@pytest.mark.parametrize(
  ("mode", "least_one_to_one", "most_one_hot"),
  [
    ("paper", 0.81, 0.19),
    ("whitespace", 0.97, 0.03),
    ("chunk", 0.97, 0.0),
    ("marginal", 0.97, 0.0),
  ],
)
def test_coverage_of_the_real_samples(mode, least_one_to_one, most_one_hot):
  total = coverage_of(map(tokens_of, released()), mode)
  assert total.positions == 1759
  assert total.rejected == {}
  assert total.one_to_one / total.positions >= least_one_to_one
  assert total.one_hot / total.positions <= most_one_hot
  assert total.characters_lost == 0
  assert total.teacher_mass_kept > 0.8


def test_coverage_of_gsm8k_in_the_teachers_tokens():
  solutions = list(gsm8k_solutions(300))
  whitespace = coverage_of(solutions, "whitespace")
  assert whitespace.one_to_one / whitespace.positions >= 0.80
  chunk = coverage_of(solutions, "chunk")
  assert chunk.one_hot / chunk.positions <= 0.005
  paper = coverage_of(solutions[:40], "paper")
  assert 0.60 <= paper.one_to_one / paper.positions <= 0.70


@pytest.mark.slow
def test_coverage_of_all_of_gsm8k():
  solutions = list(gsm8k_solutions(None))
  assert len(solutions) == 7473
  as_written = list(gsm8k_solutions(1000, answer="\n#### "))
  for some in (solutions, as_written):
    whitespace = coverage_of(some, "whitespace")
    assert whitespace.one_to_one / whitespace.positions >= 0.80
    chunk = coverage_of(some, "chunk")
    assert chunk.one_hot / chunk.positions <= 0.005


def test_an_empty_or_unspellable_text_is_rejected():
  for text in ("", " \n", "\x07"):
    tokens = trees.plain_tokens([text.encode()] if text else [])
    for mode in align_lib.MODES:
      rejected = trees.align(tokens, text, trees.tiny_student(), mode)
      assert rejected == targets.Rejected("the text has no student token")


def test_a_text_that_is_not_unicode_is_rejected():
  rejected = trees.align([], "\ud800", trees.tiny_student(), "whitespace")
  assert "not Unicode" in rejected.reason


def test_tokens_that_do_not_spell_the_text_are_an_error():
  with pytest.raises(ValueError, match="do not spell"):
    trees.align(trees.plain_tokens([b"a"]), "b", trees.tiny_student(), "paper")


def test_an_unknown_mode_names_the_known_ones():
  with pytest.raises(errors.UserError, match="paper, whitespace, chunk, marg"):
    align_lib.Aligner(trees.tiny_student(), mode="words")
