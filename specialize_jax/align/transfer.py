"""The teacher's distributions on the student's ids, one rule a mode.

Every rule takes the same aligned pair of sequences and gives one target a
student position; `marginal`, which needs the texts themselves, has a module
of its own.
"""

import dataclasses
import math
from collections.abc import Iterable

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
    mass_kept=math.fsum(
      math.fsum(target.candidates.values())
      for target in result
      if target.kind is targets.Kind.ONE_TO_ONE
    ),
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
  result = [targets.one_hot(index) for index in laid.encoding.ids]
  kept = []
  for match in laid.matches:
    distributions = match_distributions(laid, student, match)
    for j, candidates in zip(match.student, distributions, strict=True):
      if candidates:
        result[j] = targets.one_to_one(candidates)
    kept.append(math.fsum(distributions[0].values()))
  return targets.Transferred(
    targets=tuple(result), groups=laid.groups, mass_kept=math.fsum(kept)
  )


def chunk_rule(
  laid: reference.Laid, student: student_lib.StudentTokenizer
) -> targets.Transferred:
  """Gives many-to-many groups the teacher's likelihood of their text.

  A match is as in `whitespace`. In any other group, of teacher likelihood P
  (the product over its tokens) and n student tokens, each student token has
  the target P^(1/n): the product over the group is P.

  Example: "Nat" "al" "ia" of probability 1/2 each, "▁Nat" "alia" to the
  student: a match of 1/2, then a chunk of 1/4 that is "alia" alone.
  """
  matched = whitespace_rule(laid, student)
  result = list(matched.targets)
  kept = [matched.mass_kept]
  for group in laid.groups:
    if group in laid.matches or not group.teacher or not group.student:
      continue
    log_probs = [laid.tokens[i].log_prob for i in group.teacher]
    share = math.exp(math.fsum(log_probs) / len(group.student))
    if share == 0:
      continue
    kept += map(math.exp, log_probs)
    for j in group.student:
      result[j] = targets.Target(
        candidates={laid.encoding.ids[j]: share}, kind=targets.Kind.CHUNK
      )
  return targets.Transferred(
    targets=tuple(result), groups=laid.groups, mass_kept=math.fsum(kept)
  )


def match_distributions(
  laid: reference.Laid,
  student: student_lib.StudentTokenizer,
  match: targets.Group,
) -> list[dict[int, float]]:
  """Maps a teacher token's distribution to the student token that matches.

  White space is not a difference: candidates that differ from the sampled
  token in white space alone are merged with it, and a candidate begins a
  word when white space precedes it, be it its own or the text's. One that is
  no single piece is left out (its mass is missing).

  Where the student spells the word start apart, the candidates part at that
  position, and the next has what they say once the word has begun.

  Returns:
    For each student position of the match, probability by student id, the
    sampled one first; sums to at most 1. Empty where there is none.

  Example: after a newline the sampled "If" is "▁If" to the student, and so
  "She" is "▁She"; after "Natalia" " sold" is "▁sold" and "," is ",". For the
  sampled " a" of probability 1/2 with " the" of 1/4, "▁" has 1/2 against
  "▁the" 1/4, and "a" after it has 1.
  """
  (i,) = match.teacher
  token = laid.tokens[i]
  sampled = _text_of(token.spelling)
  sampled_path = tuple(laid.encoding.ids[j] for j in match.student)
  context = _Context(
    after_space=laid.after_space[i],
    sampled_begins=laid.after_space[i] or _begins_space(sampled),
    piece_begins=laid.encoding.pieces[match.student[0]].startswith(
      student_lib.WORD_START
    ),
    word_start=sampled_path[0] if len(sampled_path) == 2 else None,
  )
  weighed = [(sampled_path, math.exp(token.log_prob))]
  for spelling, log_prob in distinct(token):
    text = _text_of(spelling)
    if text is None:
      continue
    same = sampled is not None and text.strip() == sampled.strip()
    path = sampled_path if same else _path(text, context, student)
    weighed.append((path, math.exp(log_prob)))
  first = _sum_by_id((path[0], prob) for path, prob in weighed if path)
  result = [_scaled(first, max(1.0, math.fsum(first.values())))]
  if context.word_start is not None:
    second = _sum_by_id(
      (path[1], prob)
      for path, prob in weighed
      if len(path) == 2 and path[0] == sampled_path[0]
    )
    result.append(_scaled(second, math.fsum(second.values())))
  return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Context:
  """What decides a candidate's form.

  Attributes:
    after_space: White space precedes the teacher's token.
    sampled_begins: The sampled token begins a word.
    piece_begins: The student marks that beginning, in the piece or before.
    word_start: The student's token for a word start alone where the sampled
      text has one, else None.
  """

  after_space: bool
  sampled_begins: bool
  piece_begins: bool
  word_start: int | None


def _path(
  text: str, context: _Context, student: student_lib.StudentTokenizer
) -> tuple[int, ...]:
  """Gives the tokens of a candidate of a single piece; () for another's."""
  core = text.strip()
  if not core:
    return ()
  begins = context.after_space or _begins_space(text)
  bare = student.piece_id(core)
  # A student that does not mark the text's first word marks no candidate.
  if not begins or (context.sampled_begins and not context.piece_begins):
    return () if bare is None else (bare,)
  marked = student.piece_id(student_lib.WORD_START + core)
  if marked is not None:
    return (marked,)
  if bare is None or context.word_start is None:
    return ()
  return context.word_start, bare


def _sum_by_id(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
  sums: dict[int, float] = {}
  for index, prob in pairs:
    if prob > 0:
      sums[index] = sums.get(index, 0.0) + prob
  return sums


def _scaled(candidates: dict[int, float], total: float) -> dict[int, float]:
  return {index: prob / total for index, prob in candidates.items()}


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
