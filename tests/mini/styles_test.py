"""Both teachers are proper grammars; the calibrated one errs as it should."""

import collections
import dataclasses
import functools
import math
import random

import pytest

from specialize_jax import errors
from specialize_jax.align import student
from specialize_jax.mini import (
  arithmetic,
  grammar,
  splits,
  student_tokens,
  styles,
  teacher,
  vocabulary,
)

MISTAKE_RATE = 0.1
CALIBRATED = styles.CALIBRATED


@pytest.fixture(scope="module")
def drawn():
  rng = random.Random(7)
  together = []
  for draw in splits.families((0.2, 0.4, 0.3, 0.1)).values():
    for _ in range(50):
      together.extend(draw(rng))
  return [
    dataclasses.replace(problem, question_id=f"any/train/{number}")
    for number, problem in enumerate(together)
  ]


def grammar_of(problem, style=CALIBRATED, mistake_rate=MISTAKE_RATE):
  return grammar.Grammar(problem, mistake_rate=mistake_rate, style=style)


@pytest.fixture(scope="module")
def texts(drawn):
  rng = random.Random(0)
  return [
    grammar.random_solution(grammar_of(problem), rng) for problem in drawn
  ]


@pytest.fixture(scope="module")
def tokenizer(texts):
  return vocabulary.TeacherTokenizer.from_json(
    vocabulary.train_teacher(texts, vocab_size=400)
  )


@pytest.mark.parametrize("name", styles.STYLES)
def test_the_choices_of_a_style_sum_to_one(name):
  style = styles.find(name)
  choices = [style.openings, style.calculations, style.endings, style.closings]
  choices += [part for pair in style.leads.values() for part in pair]
  if style.corrections:
    choices += [style.corrections, style.fillers]
  for part in choices:
    assert math.fsum(odds for _, odds in part) == pytest.approx(1.0)
    assert all(odds > 0 for _, odds in part)


def test_the_arcs_of_every_node_sum_to_one_and_start_with_a_space(drawn):
  rng = random.Random(0)
  for problem in drawn:
    solutions = grammar_of(problem)
    starts = solutions.starts()
    assert sum(odds for _, odds in starts) == pytest.approx(1.0)
    node, at_start = rng.choice(starts)[0], True
    while arcs := solutions.arcs(node):
      assert sum(arc.probability for arc in arcs) == pytest.approx(1.0)
      for arc in arcs:
        assert arc.text.startswith(" ") != at_start
        assert arc.text.strip().split() == [arc.text.strip()]
      node, at_start = rng.choice(arcs).target, False


def test_both_teachers_have_the_same_likeliest_solution(drawn):
  """Demonstrations and lessons are likeliest solutions, of either teacher."""
  for problem in drawn:
    likeliest = grammar.likeliest_solution(problem)
    assert grammar.likeliest_solution(problem, CALIBRATED) == likeliest


def mass_of(problem, text):
  """The mass of all paths that spell a text, by memory instead of frontiers."""
  solutions = grammar_of(problem)

  @functools.cache
  def rest(node, at):
    arcs = solutions.arcs(node)
    if not arcs:
      return float(at == len(text))
    return math.fsum(
      arc.probability * rest(arc.target, at + len(arc.text))
      for arc in arcs
      if text.startswith(arc.text, at)
    )

  return math.fsum(odds * rest(node, 0) for node, odds in solutions.starts())


def test_the_teachers_distributions_multiply_to_the_mass_of_a_text(
  drawn, texts, tokenizer
):
  exact = teacher.MiniTeacher(
    tokenizer, mistake_rate=MISTAKE_RATE, style=CALIBRATED
  )
  for problem, text in list(zip(drawn, texts, strict=True))[::40]:
    tokens = [*tokenizer.encode(text), tokenizer.end_id]
    product = 1.0
    for place, token in enumerate(tokens):
      following = exact.next_token_distribution(problem, tokens[:place])
      assert following.sum() == pytest.approx(1.0, abs=1e-12)
      product *= following[token]
    assert product == pytest.approx(mass_of(problem, text), rel=1e-9)


def test_the_students_exact_distributions_do_so_too(drawn, texts):
  tokenizer = student.SentencePieceStudent(
    vocabulary.train_student(texts, vocab_size=300)
  )
  exact = student_tokens.StudentTeacher(
    tokenizer, end_id=1, mistake_rate=MISTAKE_RATE, style=CALIBRATED
  )
  for problem, text in list(zip(drawn, texts, strict=True))[::20]:
    ids = (*tokenizer.encode_ids(text), 1)
    scored = exact.along(problem, ids)
    product = math.prod(
      probs[candidates.index(token)]
      for token, candidates, probs in zip(
        ids, scored.candidates, scored.probs, strict=True
      )
    )
    assert product == pytest.approx(mass_of(problem, text), rel=1e-9)


def test_some_questions_are_misread_nearly_always_and_most_hardly_ever(
  drawn, tokenizer
):
  exact = teacher.MiniTeacher(tokenizer, mistake_rate=0.03, style=CALIBRATED)
  counts = collections.Counter()
  for problem in drawn:
    records = exact.sample(problem, 4, temperature=0.5, seed=0)
    assert {r.request["model"] for r in records} == {CALIBRATED.model_name}
    counts[sum(record.verdicts["fixed"] for record in records)] += 1
  never, always = counts[0] / len(drawn), counts[4] / len(drawn)
  assert never == pytest.approx(CALIBRATED.misread_share, abs=0.1)
  assert always > 0.5
  assert counts[2] / len(drawn) < 0.1


def test_a_misread_question_is_solved_by_one_wrong_plan(drawn):
  """Later steps go on from it, or the last step is missing."""
  missing = mistaken = 0
  for problem in drawn:
    solutions = grammar_of(problem, mistake_rate=0.0)
    node = next(node for node, _ in solutions.starts() if node.misread)
    answers = set()
    rng = random.Random(problem.question_id)
    for _ in range(3):
      at, text = node, ""
      while arcs := solutions.arcs(at):
        arc = rng.choices(arcs, [arc.probability for arc in arcs])[0]
        text, at = text + arc.text, arc.target
      answers.add(text.split()[-1])
      missing += text.count("=") == len(problem.steps) - 1
      mistaken += text.count("=") == len(problem.steps)
    assert len(answers) == 1
  assert missing > 50
  assert mistaken > 50


def test_a_wrong_result_may_be_corrected(drawn):
  rng = random.Random(1)
  corrected = 0
  for problem in drawn:
    style = dataclasses.replace(
      CALIBRATED, correction_rate=1.0, misread_share=0.0, filler_rate=0.0
    )
    solutions = grammar_of(problem, style, mistake_rate=0.5)
    text = grammar.random_solution(solutions, rng)
    assert text.endswith(f" {problem.answer}.")
    corrected += " No, " in text
    assert text.count("=") == len(problem.steps) + text.count(" No, ")
  assert corrected > len(drawn) / 3


def test_a_fillers_sentence_goes_on_as_before(drawn):
  style = dataclasses.replace(CALIBRATED, filler_rate=0.5)
  rng = random.Random(0)
  fillers = {word for word, _ in style.fillers}
  seen = 0
  for problem in drawn[:40]:
    text = grammar.random_solution(grammar_of(problem, style), rng)
    last = text.split()[-4:]
    assert last[1:3] == ["answer", "is"], text
    seen += sum(word in fillers for word in text.split())
  assert seen > 200


def test_facts_stay_facts_in_either_order_of_addends():
  for operation, left, right in arithmetic.facts():
    if operation == "+":
      assert arithmetic.is_fact("+", right, left)


def test_a_style_without_a_name_is_refused():
  with pytest.raises(errors.UserError, match="style='sure' is not one of"):
    styles.find("sure")
