"""Alignment in the plainest words: whole texts, dictionaries, one sample.

What every mode is held to. Nothing here is fast, nothing is remembered, and
nothing is taken from the package but the student's tokenizer and the shapes of
what goes in and comes out: every alternative's text is tokenized whole.
"""

import dataclasses
import math

import numpy as np
from rapidfuzz.distance import Levenshtein

from specialize_jax.align import student as student_lib
from specialize_jax.align import targets, token_classes

_DIAGONAL, _UP, _LEFT = range(3)
ONE_HOT, ONE_TO_ONE, CHUNK, MASKED = targets.Kind


@dataclasses.dataclass
class Target:
  """One position's target: probability by student id, and where it is from."""

  candidates: dict
  kind: targets.Kind


def align(tokens, text, student, mode):
  """Aligns one sample: `targets.AlignedTargets`, or why there is none."""
  try:
    encoded = text.encode()
  except UnicodeEncodeError:
    return targets.Rejected("the text is not Unicode (a lone surrogate)")
  assert b"".join(token.spelling for token in tokens) == encoded
  laid = lay(tokens, text, student)
  if not laid.ids:
    return targets.Rejected("the text has no student token")
  rule = {
    "paper": paper,
    "whitespace": whitespace,
    "chunk": chunk,
    "marginal": marginal,
  }[mode]
  found = rule(laid, student)
  if isinstance(found, targets.Rejected):
    return found
  result, groups, kept = found
  for j, index in enumerate(laid.ids):
    if index == student.unknown_id:
      result[j] = Target({}, MASKED)
  top_ids_TC, top_log_probs_TC = stack(result)
  kinds_T = np.array([target.kind for target in result], np.uint8)
  ranks = visible_ranks(text, student)
  classes_T = []
  for j, (start, _) in enumerate(laid.student_spans):
    first = j == 0 or laid.student_spans[j - 1][0] != start
    breaks = [
      rank for c, rank in zip(encoded, ranks[1:], strict=True) if c == 10
    ]
    if first and (start == 0 or start in breaks):
      classes_T.append(token_classes.TokenClass.LINE_START)
    else:
      classes_T.append(token_classes.of_piece(laid.encoding.pieces[j]))
  offered = 0.0
  for token, blank in zip(tokens, laid.blank, strict=True):
    share = math.exp(token.log_prob)
    share += sum(math.exp(log_prob) for _, log_prob in distinct(token))
    offered += 0.0 if blank else min(1.0, share)
  return targets.AlignedTargets(
    ids_T=np.array(laid.ids, np.int32),
    pieces=laid.encoding.pieces,
    top_ids_TC=top_ids_TC,
    top_log_probs_TC=top_log_probs_TC,
    mask_T=np.isin(kinds_T, (ONE_TO_ONE, CHUNK)).astype(np.uint8),
    kinds_T=kinds_T,
    classes_T=np.array(classes_T, np.uint8),
    groups=groups,
    characters_lost=laid.encoding.characters_lost,
    mass_offered=offered,
    mass_kept=min(kept, offered),
  )


def stack(result):
  """Pads dictionaries to arrays."""
  width = max(1, *(len(target.candidates) for target in result))
  ids_TC = np.zeros((len(result), width), np.int32)
  probs_TC = np.zeros((len(result), width))
  for j, target in enumerate(result):
    used = len(target.candidates)
    ids_TC[j, :used] = list(target.candidates)
    probs_TC[j, :used] = list(target.candidates.values())
  with np.errstate(divide="ignore"):
    return ids_TC, np.log(probs_TC)


def distinct(token):
  """The candidates other than the sampled token, each once."""
  seen, result = {token.spelling}, []
  for spelling, log_prob in token.top:
    if spelling not in seen:
      seen.add(spelling)
      result.append((spelling, log_prob))
  return result


# ------------------------------------------------------------------ the texts


@dataclasses.dataclass
class Laid:
  """Both token sequences laid on one text."""

  tokens: list
  text: str
  encoding: student_lib.Encoding
  ids: tuple
  starts: list  # the byte where each teacher token begins
  teacher_spans: list  # in visible bytes
  student_spans: list
  groups: tuple
  matches: list
  blank: list


def lay(tokens, text, student):
  """Cuts both sequences wherever both have a token boundary."""
  encoding = student.encode_with_spans(text)
  ranks = visible_ranks(text, student)
  ends = np.cumsum([0, *(len(token.spelling) for token in tokens)]).tolist()
  teacher_spans = [
    (int(ranks[s]), int(ranks[e]))
    for s, e in zip(ends[:-1], ends[1:], strict=True)
  ]
  student_spans = [(int(ranks[s]), int(ranks[e])) for s, e in encoding.spans]
  if student_spans:  # what the student drops at the end goes to its last
    student_spans[-1] = student_spans[-1][0], int(ranks[-1])
  groups = character_groups(teacher_spans, student_spans)
  matches = []
  for group in groups:
    if len(group.teacher) == 1 and group.student:
      *before, last = group.student
      start_alone = [_adds(student, encoding, j) for j in before] == [b" "]
      covers = student_spans[last][0] < student_spans[last][1]
      if covers and (not before or start_alone):
        matches.append(group)
  return Laid(
    tokens=list(tokens),
    text=text,
    encoding=encoding,
    ids=encoding.ids,
    starts=ends[:-1],
    teacher_spans=teacher_spans,
    student_spans=student_spans,
    groups=groups,
    matches=matches,
    blank=[start == end for start, end in teacher_spans],
  )


def _adds(student, encoding, j):
  """What a token adds to a text: a space for "\u2581"."""
  if hasattr(student, "token_bytes"):
    return student.token_bytes(encoding.ids[j])
  return encoding.pieces[j].replace("\u2581", " ").encode()


def visible_ranks(text, student=None):
  """Counts the bytes before each byte, those of white space left out.

  A student that keeps white space sees every byte.
  """
  keeps = getattr(student, "keeps_white_space", False)
  ranks = [0]
  for character in text:
    for _ in character.encode():
      ranks.append(ranks[-1] + (keeps or not character.isspace()))
  return ranks


def character_groups(teacher_spans, student_spans):
  """Cuts both sequences wherever both have a token boundary.

  A teacher token that covers nothing at such a cut (white space alone) is a
  group of its own without student tokens. A student token that covers nothing
  (a word start alone, say) belongs to the group after it; those after the last
  group are one without teacher tokens. Without any student token the teacher's
  are all one group.

  Example: " a bc" against "▁", "a", "▁b", "c" for the teacher's " a", " bc".
    >>> groups = character_groups(
    ...   [(0, 1), (1, 3)], [(0, 0), (0, 1), (1, 2), (2, 3)]
    ... )
    >>> [(g.teacher, g.student) for g in groups]
    [((0,), (0, 1)), ((1,), (2, 3))]
  """
  if not student_spans:
    return (targets.Group(tuple(range(len(teacher_spans))), ()),)
  groups = []
  i = j = 0
  while i < len(teacher_spans):
    if teacher_spans[i][0] == teacher_spans[i][1]:
      groups.append(targets.Group((i,), ()))
      i += 1
      continue
    first_i, first_j = i, j
    teacher_end, student_end = teacher_spans[i][1], -1
    i += 1
    while student_end != teacher_end:
      if student_end < teacher_end:
        student_end = student_spans[j][1]
        j += 1
      else:
        teacher_end = teacher_spans[i][1]
        i += 1
    groups.append(
      targets.Group(tuple(range(first_i, i)), tuple(range(first_j, j)))
    )
  if j < len(student_spans):  # these cover nothing, after the last group
    rest = tuple(range(j, len(student_spans)))
    groups.append(targets.Group((), rest))
  return tuple(groups)


def leaf_of(laid, i, spelling, student):
  """The student tokens of the text before step i and a candidate.

  None where they do not spell whole characters.
  """
  before = laid.text.encode()[: laid.starts[i]]
  try:
    return student.encode((before + spelling).decode())[0]
  except UnicodeDecodeError:
    return None


# ------------------------------------------------------- paper: edit distances


def paper(laid, student):
  """The paper's rule, as its code has it.

  A student token that the path gives one teacher token, spelled the same with
  "▁" for " ", takes that token's distribution: the sampled token, then the
  API's candidates, each that is a student piece, the first of equals. Every
  other student token gets a one-hot target (FranxYao/
  FlanT5-CoT-Specialization: notebooks/dev_align_codex_to_flan_t5_dtw.ipynb,
  `transform_step_probs`).
  """
  strings = [token.spelling.decode(errors="replace") for token in laid.tokens]
  path = warping_path(distances(strings, laid.encoding.pieces))
  result, kept = [], 0.0
  for j, piece in enumerate(laid.encoding.pieces):
    matched = [i for i, column in path if column == j]
    same = strings[matched[0]].replace(" ", "\u2581") == piece
    unknown = laid.ids[j] == student.unknown_id
    if len(matched) > 1 or not same or unknown:
      result.append(Target({laid.ids[j]: 1.0}, ONE_HOT))
      continue
    token = laid.tokens[matched[0]]
    candidates = {}
    for spelling, log_prob in ((token.spelling, token.log_prob), *token.top):
      named = spelling.decode(errors="replace").replace(" ", "\u2581")
      index = student.piece_id(named)
      if index is not None:
        candidates.setdefault(index, math.exp(log_prob))
    result.append(Target(candidates, ONE_TO_ONE))
    kept += sum(candidates.values())
  return result, path_groups(path), kept


def token_distance(teacher_token, piece):
  """The paper's c: edits from one token to the other, blanks ignored."""
  return Levenshtein.distance(
    teacher_token.replace(" ", ""), piece.replace("\u2581", "")
  )


def distances(strings, pieces):
  """c for each teacher token and each student piece, [L, T]."""
  return np.array(
    [[token_distance(string, piece) for piece in pieces] for string in strings],
    np.float64,
  )


def warping_path(cost_LT):
  """The cheapest monotone path through a cost matrix.

  f(i, j) = c(i, j) + min{f(i-1, j), f(i, j-1), f(i-1, j-1)}, f(0, 0) = c(0, 0)
  (the paper, section 3; its code leads back from the last cell and, of equal
  ways, takes the diagonal, then up (i-1), then left (j-1)).

  Example:
    >>> warping_path(np.array([[0, 1, 1], [1, 0, 0]]))
    [(0, 0), (1, 1), (1, 2)]
  """
  num_rows, num_columns = cost_LT.shape
  total = np.full((num_rows + 1, num_columns + 1), np.inf)
  total[0, 0] = 0
  for i in range(num_rows):
    for j in range(num_columns):
      total[i + 1, j + 1] = cost_LT[i, j] + min(
        total[i, j + 1], total[i + 1, j], total[i, j]
      )
  i, j = num_rows - 1, num_columns - 1
  path = [(i, j)]
  while i > 0 or j > 0:
    ways = total[i, j], total[i, j + 1], total[i + 1, j]
    move = int(np.argmin(ways))  # the first of equals: diagonal, up, left
    i -= move in (_DIAGONAL, _UP)
    j -= move in (_DIAGONAL, _LEFT)
    path.append((i, j))
  return path[::-1]


def path_groups(path):
  """Joins the cells of a path that share a row or a column.

  Example:
    >>> [(g.teacher, g.student) for g in path_groups([(0, 0), (1, 1), (1, 2)])]
    [((0,), (0,)), ((1,), (1, 2))]
  """
  groups, teacher, student = [], [], []
  for i, j in path:
    if teacher and i != teacher[-1] and j != student[-1]:
      groups.append(targets.Group(tuple(teacher), tuple(student)))
      teacher, student = [], []
    if not teacher or i != teacher[-1]:
      teacher.append(i)
    if not student or j != student[-1]:
      student.append(j)
  groups.append(targets.Group(tuple(teacher), tuple(student)))
  return tuple(groups)


# ------------------------------------------- whitespace and chunk: characters


def whitespace(laid, student):
  """One-to-one positions take the teacher's distribution, others one-hot.

  A candidate is laid on a student token only if the text before the step and
  the candidate have, there, that one token more than the text before has.
  Where the student spells the word start apart, the candidates part at that
  position, and the next has what they say once the word has begun.
  """
  result = [Target({index: 1.0}, ONE_HOT) for index in laid.ids]
  kept = 0.0
  for match in laid.matches:
    (i,), first = match.teacher, match.student[0]
    token = laid.tokens[i]
    sampled = tuple(laid.ids[j] for j in match.student)
    weighed = [(sampled, math.exp(token.log_prob))]
    for spelling, log_prob in distinct(token):
      leaf = leaf_of(laid, i, spelling, student)
      if leaf is None or leaf[:first] != laid.ids[:first]:
        continue
      path = leaf[first:]
      one = len(path) == 1
      two = len(path) == len(sampled) == 2 and path[0] == sampled[0]
      if (one or two) and (path == sampled or path[-1] != student.unknown_id):
        weighed.append((path, math.exp(log_prob)))
    candidates = {}
    for path, prob in weighed:
      if prob > 0:
        candidates[path[0]] = candidates.get(path[0], 0.0) + prob
    total = max(1.0, sum(candidates.values()))
    if candidates:
      scaled = {index: prob / total for index, prob in candidates.items()}
      result[first] = Target(scaled, ONE_TO_ONE)
    if laid.ids[first] != student.unknown_id:
      kept += sum(candidates.values()) / total
    if len(sampled) == 2:
      goes_on = {}
      for path, prob in weighed:
        if len(path) == 2 and prob > 0:
          goes_on[path[1]] = goes_on.get(path[1], 0.0) + prob
      total = sum(goes_on.values())
      if goes_on:
        result[first + 1] = Target(
          {index: prob / total for index, prob in goes_on.items()}, ONE_TO_ONE
        )
  return result, laid.groups, kept


def chunk(laid, student):
  """Groups that are no match take the teacher's likelihood of their text.

  Of likelihood P and n student tokens, the unknown one not counted, each has
  P^(1/n).
  """
  result, groups, kept = whitespace(laid, student)
  for group in groups:
    spelled = [j for j in group.student if laid.ids[j] != student.unknown_id]
    if group in laid.matches or not group.teacher or not spelled:
      continue
    log_probs = [laid.tokens[i].log_prob for i in group.teacher]
    share = math.exp(sum(log_probs) / len(spelled))
    if share > 0:
      kept += sum(map(math.exp, log_probs))
      for j in spelled:
        result[j] = Target({laid.ids[j]: share}, CHUNK)
  return result, groups, kept


# --------------------------------------------- marginal: the tree of all texts


@dataclasses.dataclass
class Leaf:
  """A text that the teacher weighed: where it parts, its token, log weight."""

  position: int
  own: int | None
  log_weight: float


def steps_of(laid, student):
  """Each step's probabilities: stays, other candidates, mass outside.

  White space that could stand for sampled white space stays: the whole text
  has the same student tokens with either.
  """
  encoded = laid.text.encode()
  steps = []
  for i, token in enumerate(laid.tokens):
    before = encoded[: laid.starts[i]]
    after = encoded[laid.starts[i] + len(token.spelling) :]
    stays, others = math.exp(token.log_prob), []
    for spelling, log_prob in distinct(token):
      if _is_blank(token.spelling) and _is_blank(spelling):
        text = (before + spelling + after).decode()
        if student.encode(text)[0] == laid.ids:
          stays += math.exp(log_prob)
          continue
      if log_prob > -math.inf:
        others.append((spelling, math.exp(log_prob)))
    total = max(1.0, stays + sum(prob for _, prob in others))
    others = [(spelling, prob / total) for spelling, prob in others]
    outside = max(0.0, 1 - stays / total - sum(prob for _, prob in others))
    steps.append((stays / total, others, outside))
  return steps


def _is_blank(spelling):
  try:
    return not spelling.decode().strip()
  except UnicodeDecodeError:
    return False


def leaves_of(laid, steps, student):
  """All leaves of the tree: the first is the sampled text."""
  leaves, log_weight = [], 0.0
  for i, (stays, others, outside) in enumerate(steps):
    end = _tokens_within(laid.encoding.spans, laid.starts[i])
    for spelling, prob in others:
      leaf = leaf_of(laid, i, spelling, student)
      position, own = end, None
      if leaf is not None:
        position = 0
        while leaf[: position + 1] == laid.ids[: position + 1] and (
          position < min(len(leaf), len(laid.ids))
        ):
          position += 1
        own = leaf[position] if position < len(leaf) else None
      leaves.append((i, Leaf(position, own, log_weight + math.log(prob))))
    if outside > 0:
      leaves.append((i, Leaf(end, None, log_weight + math.log(outside))))
    log_weight += math.log(stays)
  return [(None, Leaf(len(laid.ids), None, log_weight)), *leaves]


def _tokens_within(spans, num_bytes):
  whole = 0
  for start, end in spans:
    if start >= num_bytes or end > num_bytes:
      break
    whole += 1
  return whole


def marginal(laid, student):
  """Sums the tree's leaves at each position, and normalizes."""
  steps = steps_of(laid, student)
  if any(stays == 0 for stays, _, _ in steps):
    return targets.Rejected("the teacher gives a sampled token probability 0")
  leaves = leaves_of(laid, steps, student)
  matched = {j for match in laid.matches for j in match.student}
  result = []
  log_mass = np.full(len(laid.ids) + 2, -np.inf)
  for j in range(len(laid.ids), -1, -1):
    here = [leaf.log_weight for _, leaf in leaves if leaf.position == j]
    log_mass[j] = np.logaddexp.reduce([log_mass[j + 1], *here])
  for j, sampled in enumerate(laid.ids):
    candidates = {sampled: math.exp(log_mass[j + 1] - log_mass[j])}
    for _, leaf in leaves:
      if leaf.position == j and leaf.own not in (None, student.unknown_id):
        prob = math.exp(leaf.log_weight - log_mass[j])
        candidates[leaf.own] = candidates.get(leaf.own, 0.0) + prob
    used = {index: prob for index, prob in candidates.items() if prob > 0}
    result.append(Target(used, ONE_TO_ONE if j in matched else CHUNK))
  return result, laid.groups, _kept(laid, steps, leaves, student)


def _kept(laid, steps, leaves, student):
  """The probability of visible teacher tokens that reaches a target."""
  kept = 0.0
  for i, (stays, others, _) in enumerate(steps):
    if laid.blank[i]:
      continue
    (group,) = [group for group in laid.groups if i in group.teacher]
    if any(laid.ids[j] != student.unknown_id for j in group.student):
      kept += stays
    named = [leaf for step, leaf in leaves if step == i][: len(others)]
    for leaf, (_, prob) in zip(named, others, strict=True):
      spelled = leaf.own not in (None, student.unknown_id)
      masked = leaf.position < len(laid.ids) and (
        laid.ids[leaf.position] == student.unknown_id
      )
      kept += prob if spelled and not masked else 0.0
  return kept
