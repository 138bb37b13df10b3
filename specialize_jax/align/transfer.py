"""The teacher's distributions on the student's ids, one rule a mode.

Every rule takes the same aligned pair of sequences and gives one target a
student position; `marginal`, which needs the texts themselves, has a module
of its own.
"""

import dataclasses
import math
from collections.abc import Sequence

from specialize_jax.align import reference, targets
from specialize_jax.align import student as student_lib


def paper_rule(
  laid: reference.Laid, student: student_lib.StudentTokenizer
) -> targets.Transferred:
  """Applies the paper's rule, as its code has it.

  A student token that the path gives one teacher token, spelled the same with
  "▁" for " ", takes that token's distribution: the sampled token, then the
  API's candidates, each that is a student piece, the first of equals. Every
  other student token gets a one-hot target (FranxYao/
  FlanT5-CoT-Specialization: notebooks/dev_align_codex_to_flan_t5_dtw.ipynb,
  `transform_step_probs`).
  """
  encoding = laid.encoding
  strings = [_lenient(token.spelling) for token in laid.tokens]
  path = reference.warping_path(reference.distances(strings, encoding.pieces))
  matches = [[] for _ in encoding.pieces]
  for i, j in path:
    matches[j].append(i)
  result = []
  for j, piece in enumerate(encoding.pieces):
    i = matches[j][0]
    same = strings[i].replace(" ", student_lib.WORD_START) == piece
    if len(matches[j]) > 1 or not same:
      result.append(targets.one_hot(encoding.ids[j]))
      continue
    candidates = _paper_candidates(laid.tokens[i], student)
    result.append(targets.one_to_one(candidates))
  return targets.Transferred(
    targets=tuple(result),
    groups=reference.path_groups(path),
    mass_kept=_mass(result),
  )


def _paper_candidates(
  token: targets.TeacherToken, student: student_lib.StudentTokenizer
) -> dict[int, float]:
  candidates: dict[int, float] = {}
  for spelling, log_prob in ((token.spelling, token.log_prob), *token.top):
    piece = _lenient(spelling).replace(" ", student_lib.WORD_START)
    index = student.piece_id(piece)
    if index is not None:
      candidates.setdefault(index, math.exp(log_prob))
  return candidates


def whitespace_rule(
  laid: reference.Laid, student: student_lib.StudentTokenizer
) -> targets.Transferred:
  """Gives one-to-one positions the teacher's distribution, others one-hot."""
  result = []
  for j, student_id in enumerate(laid.encoding.ids):
    i = laid.pairs.get(j)
    candidates = {} if i is None else distribution(laid, student, i=i, j=j)
    result.append(
      targets.one_to_one(candidates)
      if candidates
      else targets.one_hot(student_id)
    )
  return targets.Transferred(
    targets=tuple(result), groups=laid.groups, mass_kept=_mass(result)
  )


def chunk_rule(
  laid: reference.Laid, student: student_lib.StudentTokenizer
) -> targets.Transferred:
  """Gives many-to-many groups the teacher's likelihood of their text.

  A group of one token each is as in `whitespace`. In any other, of teacher
  likelihood P (the product over its tokens) and n student tokens, each student
  token has the target P^(1/n): the product over the group is P.
  """
  result = list(whitespace_rule(laid, student).targets)
  sampled_kept = 0.0
  for group in laid.groups:
    single = len(group.teacher) == len(group.student) == 1
    if single or not group.teacher or not group.student:
      continue
    log_probs = [laid.tokens[i].log_prob for i in group.teacher]
    share = math.exp(math.fsum(log_probs) / len(group.student))
    if share == 0:
      continue
    sampled_kept += math.fsum(map(math.exp, log_probs))
    for j in group.student:
      result[j] = targets.Target(
        candidates={laid.encoding.ids[j]: share}, kind=targets.Kind.CHUNK
      )
  return targets.Transferred(
    targets=tuple(result),
    groups=laid.groups,
    mass_kept=_mass(result) + sampled_kept,
  )


def distribution(
  laid: reference.Laid, student: student_lib.StudentTokenizer, *, i: int, j: int
) -> dict[int, float]:
  """Maps teacher token i's distribution to student ids at position j.

  White space is not a difference: candidates that differ from the sampled
  token in white space alone are merged with it, and a candidate begins a
  word when white space precedes it, be it its own or the text's. One that is
  no single piece is left out (its mass is missing).

  Returns:
    Probability by student id, the sampled one first; sums to at most 1.
    Empty where the teacher gives none of them any.

  Example: after a newline the sampled "If" is "▁If" to the student, and so
  "She" is "▁She"; after "Natalia" " sold" is "▁sold" and "," is ",".
  """
  token = laid.tokens[i]
  sampled = _text_of(token.spelling)
  piece = laid.encoding.pieces[j]
  context = _Context(
    after_space=laid.after_space[i],
    sampled_begins=laid.after_space[i] or _begins_space(sampled),
    piece_begins=piece.startswith(student_lib.WORD_START),
  )
  candidates = {laid.encoding.ids[j]: math.exp(token.log_prob)}
  for spelling, log_prob in distinct(token):
    text = _text_of(spelling)
    prob = math.exp(log_prob)
    if text is None or prob == 0:
      continue
    if sampled is not None and text.strip() == sampled.strip():
      index = laid.encoding.ids[j]
    else:
      index = _candidate_id(text, context, student)
    if index is not None:
      candidates[index] = candidates.get(index, 0.0) + prob
  return _at_most_one(candidates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
  """What decides a candidate's form.

  Attributes:
    after_space: White space precedes the teacher's token.
    sampled_begins: The sampled token begins a word.
    piece_begins: The sampled student piece starts with the word start.
  """

  after_space: bool
  sampled_begins: bool
  piece_begins: bool


def _candidate_id(
  text: str, context: _Context, student: student_lib.StudentTokenizer
) -> int | None:
  """Gives the piece that spells a candidate, None where no single one does."""
  core = text.strip()
  if not core:
    return None
  begins = context.after_space or _begins_space(text)
  if begins == context.sampled_begins:
    with_start = context.piece_begins
  elif begins:
    with_start = True
  elif context.piece_begins:
    with_start = False
  else:  # the student has already begun a word, with a word start alone
    return None
  return student.piece_id(student_lib.WORD_START + core if with_start else core)


def distinct(
  token: targets.TeacherToken,
) -> tuple[tuple[bytes, float], ...]:
  """Gives the candidates other than the sampled token, each once."""
  seen = {token.spelling}
  result = []
  for spelling, log_prob in token.top:
    if spelling not in seen:
      seen.add(spelling)
      result.append((spelling, log_prob))
  return tuple(result)


def _at_most_one(candidates: dict[int, float]) -> dict[int, float]:
  """Drops what has no probability; scales down a sum above 1 (rounding)."""
  total = max(1.0, math.fsum(candidates.values()))
  return {
    index: min(prob / total, 1.0)
    for index, prob in candidates.items()
    if prob > 0
  }


def _mass(result: Sequence[targets.Target]) -> float:
  """Sums what the one-to-one positions were given."""
  return math.fsum(
    math.fsum(target.candidates.values())
    for target in result
    if target.kind is targets.Kind.ONE_TO_ONE
  )


def _text_of(spelling: bytes) -> str | None:
  """Decodes a token; None where it is not whole characters."""
  try:
    return spelling.decode("utf-8")
  except UnicodeDecodeError:
    return None


def _lenient(spelling: bytes) -> str:
  return spelling.decode("utf-8", errors="replace")


def _begins_space(text: str | None) -> bool:
  return text is not None and text[:1].isspace()
