"""Samples vote as in the paper, and ties fall as documented."""

import pytest

from specialize_jax.cot import answer_rules
from specialize_jax.decoding import self_consistency


def test_the_majority_wins_whatever_its_spelling():
  texts = ["The answer is 72", "so 70", "it is $72.0", "no idea"]
  vote = self_consistency.vote(texts, [-3.0, -1.0, -2.0, -0.5])
  assert vote.answer == "72"
  assert vote.shares == {"72": pytest.approx(2 / 3), "70": pytest.approx(1 / 3)}
  assert list(vote.shares) == ["72", "70"]
  assert vote.index == 2, "of the winner's voters the most likely speaks"


def test_a_tie_goes_to_the_more_likely_and_then_to_the_first():
  texts = ["1", "2", "1", "2"]
  assert self_consistency.vote(texts, [-5.0, -1.0, -5.0, -2.0]).answer == "2"
  assert self_consistency.vote(texts, [-1.0, -1.0, -1.0, -1.0]).answer == "1"
  reversed_vote = self_consistency.vote(texts[::-1], [-1.0] * 4)
  assert reversed_vote.answer == "2"


def test_more_votes_win_over_more_probability():
  vote = self_consistency.vote(["1", "1", "2"], [-50.0, -50.0, -1.0])
  assert vote.answer == "1"
  assert vote.index == 0


def test_samples_without_answer_do_not_vote():
  vote = self_consistency.vote(["none", "none", "5"], [-1.0, -1.0, -9.0])
  assert (vote.answer, vote.shares, vote.index) == ("5", {"5": 1.0}, 2)
  nobody = self_consistency.vote(["none", "nil"], [-2.0, -1.0])
  assert (nobody.answer, nobody.shares, nobody.index) == (None, {}, 1)


def test_a_choice_s_spellings_are_one_answer():
  vote = self_consistency.vote(
    ["Yes.", "no", "yes, it is"],
    [-1.0, -1.0, -1.0],
    rule=answer_rules.AnswerRule(kind="choice"),
  )
  assert (vote.answer, vote.index) == ("yes", 0)


@pytest.mark.parametrize(
  ("rule", "texts", "shares"),
  [
    (
      {"kind": "json", "field": "정답"},
      ['1번. {"정답": "나"}', '2번.\n{"정답": "나"}', '{"정답": "다"}', "12"],
      {"나": 2 / 3, "다": 1 / 3},
    ),
    (
      {"kind": "json", "field": "결과.값", "compare": "number"},
      ['{"결과": {"값": 1200}}', '{"결과": {"값": "1,200"}}', '{"결과": {}}'],
      {"1200": 1.0},
    ),
    (
      {"kind": "regex", "pattern": "queue: (?P<queue>[A-Za-z]+)"},
      ["queue: late", "5 queue: Late", "queue: lost", "late"],
      {"late": 2 / 3, "lost": 1 / 3},
    ),
    (
      {"kind": "python", "function": "testdata.own_rules.last_word",
       "compare": "python:testdata.own_rules.begin_alike"},
      ["it is late", "it is lateness", "lost"],
      {"late": 2 / 3, "lost": 1 / 3},
    ),
    ({"kind": "option"}, ["(B)", "The answer is b", "A."], {"(b)": 2 / 3,
                                                             "(a)": 1 / 3}),
  ],
)  # fmt: skip
def test_samples_vote_by_the_rule_of_their_dataset(rule, texts, shares):
  vote = self_consistency.vote(
    texts, [-1.0] * len(texts), rule=answer_rules.AnswerRule(**rule)
  )
  assert vote.shares == pytest.approx(shares)
  assert vote.answer == next(iter(shares))
  assert vote.index == 0
