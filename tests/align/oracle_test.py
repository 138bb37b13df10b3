"""The two layings of tokens, held to definitions and to brute force."""

import doctest
import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testdata import alignment_oracle as oracle
from testdata import real_files, trees

from specialize_jax.align import student as student_lib
from specialize_jax.align import targets

SETTINGS = settings(
  deadline=None,
  max_examples=100,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
COSTS = st.integers(1, 4).flatmap(
  lambda rows: st.integers(1, 4).flatmap(
    lambda columns: st.lists(
      st.lists(st.integers(0, 3), min_size=columns, max_size=columns),
      min_size=rows,
      max_size=rows,
    )
  )
)


def test_the_docstrings_numbers_are_true():
  for module in (oracle, targets):
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def _edits(left, right):
  """The edit distance by its definition."""

  @functools.cache
  def edits(i, j):
    if i == 0 or j == 0:
      return i + j
    changed = left[i - 1] != right[j - 1]
    return min(
      edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + changed
    )

  return edits(len(left), len(right))


@SETTINGS
@given(
  st.text(alphabet="ab\n\u00e9 \U0001f600", max_size=6),
  st.text(alphabet="ab\n\u00e9\u2581\U0001f600", max_size=6),
)
def test_the_distance_is_the_edit_distance_without_blanks(token, piece):
  assert oracle.token_distance(token, piece) == _edits(
    token.replace(" ", ""), piece.replace("\u2581", "")
  )


def _all_paths(rows, columns):
  def grow(path):
    i, j = path[-1]
    if (i, j) == (rows - 1, columns - 1):
      yield path
    for step in ((1, 1), (1, 0), (0, 1)):
      cell = i + step[0], j + step[1]
      if cell[0] < rows and cell[1] < columns:
        yield from grow([*path, cell])

  return grow([(0, 0)])


@SETTINGS
@given(COSTS)
def test_no_monotone_path_is_cheaper(costs):
  cost_LT = np.array(costs, float)
  path = oracle.warping_path(cost_LT)
  every = list(_all_paths(*cost_LT.shape))
  assert path in every
  cheapest = min(sum(cost_LT[cell] for cell in other) for other in every)
  assert sum(cost_LT[cell] for cell in path) == cheapest


def test_of_equal_ways_back_the_diagonal_is_taken_then_up_then_left():
  assert oracle.warping_path(np.zeros((2, 2))) == [(0, 0), (1, 1)]
  # The way back from (2, 2) avoids the 9; (1, 2) and (2, 1) cost the same.
  around = np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
  assert oracle.warping_path(around) == [(0, 0), (0, 1), (1, 2), (2, 2)]


def token_spans(tokens):
  ends = np.cumsum([0, *(len(token.spelling) for token in tokens)]).tolist()
  return list(zip(ends[:-1], ends[1:], strict=True))


def _check_partition(groups, length, width):
  assert [i for g in groups for i in g.teacher] == list(range(length))
  assert [j for g in groups for j in g.student] == list(range(width))


@SETTINGS
@given(COSTS)
def test_a_paths_groups_partition_both_sequences(costs):
  cost_LT = np.array(costs, float)
  groups = oracle.path_groups(oracle.warping_path(cost_LT))
  _check_partition(groups, *cost_LT.shape)
  assert all(group.teacher and group.student for group in groups)


@SETTINGS
@given(trees.samples())
def test_character_groups_partition_both_and_conserve_text(sample):
  text, tokens = sample
  laid = oracle.lay(tokens, text, trees.tiny_student())
  _check_partition(laid.groups, len(tokens), len(laid.encoding.ids))
  spelled = text.encode()
  ranks = oracle.visible_ranks(text)
  spans = token_spans(tokens)
  for group in laid.groups:
    if not group.teacher or not group.student:
      continue
    teacher = [ranks[spans[group.teacher[k]][k]] for k in (0, -1)]
    student = [ranks[laid.encoding.spans[group.student[k]][k]] for k in (0, -1)]
    if group.student[-1] + 1 == len(laid.encoding.ids):
      student[-1] = ranks[-1]  # with what the student drops at the end
    assert teacher == student  # the same visible bytes
  if laid.encoding.ids:
    covered = b"".join(spelled[a:b] for a, b in laid.encoding.spans)
    assert spelled.startswith(covered)


@SETTINGS
@given(trees.samples())
def test_groups_are_as_small_as_can_be(sample):
  text, tokens = sample
  laid = oracle.lay(tokens, text, trees.tiny_student())
  ranks = oracle.visible_ranks(text)
  spans = token_spans(tokens)
  teacher_ends = {int(ranks[end]) for _, end in spans}
  student_ends = {int(ranks[end]) for _, end in laid.encoding.spans[:-1]}
  student_ends |= {int(ranks[-1])}
  cuts = (teacher_ends & student_ends) - {0}
  visible = [
    group
    for group in laid.groups
    if any(not laid.blank[i] for i in group.teacher)
  ]
  if laid.encoding.ids:
    assert len(visible) == len(cuts)


@pytest.mark.parametrize(
  ("spellings", "matches"),
  [
    (["If", " Natalia"], [((0,), (0,))]),
    ([".", "\n", "If"], [((0,), (0, 1)), ((2,), (2,))]),
    (["\n", "\n", "If"], [((2,), (0,))]),
  ],
)
def test_white_space_is_not_a_difference(spellings, matches):
  student = _Words()
  laid = oracle.lay(
    trees.plain_tokens([s.encode() for s in spellings]),
    "".join(spellings),
    student,
  )
  assert [(m.teacher, m.student) for m in laid.matches] == matches


class _Words:
  """A student whose pieces are spelled out by the test."""

  _PIECES = {
    "If Natalia": (("\u2581If", 0, 2), ("\u2581Nat", 2, 6), ("alia", 6, 10)),
    ".\nIf": (("\u2581", 0, 0), (".", 0, 1), ("\u2581If", 1, 4)),
    "\n\nIf": (("\u2581If", 0, 4),),
  }

  def encode_with_spans(self, text):
    found = self._PIECES[text]
    return student_lib.Encoding(
      ids=tuple(range(len(found))),
      pieces=tuple(piece for piece, _, _ in found),
      spans=tuple((start, end) for _, start, end in found),
      characters_lost=0,
    )


def test_a_piece_that_spells_part_of_a_character_matches_nothing():
  pieces = [("\u25811", 0, 0), ("\u2044", 0, 0), ("2", 0, 2)]
  student = _Words()
  student._PIECES = {"\u00bd": tuple(pieces)}
  laid = oracle.lay(trees.plain_tokens(["\u00bd".encode()]), "\u00bd", student)
  assert laid.matches == []
  assert [(g.teacher, g.student) for g in laid.groups] == [((0,), (0, 1, 2))]


def test_what_the_student_drops_at_the_end_goes_to_its_last_token():
  laid = oracle.lay(
    trees.plain_tokens([b"end", b"\x07"]), "end\x07", real_files.t5()
  )
  assert laid.encoding.pieces == ("\u2581end",)
  assert [(g.teacher, g.student) for g in laid.groups] == [((0, 1), (0,))]
  assert laid.matches == []
