"""One sample in, its aligned targets out: the readable form, and the oracle.

Many samples go through `batched.Aligner`, which is held to this.
"""

import math
from collections.abc import Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.align import (
  marginal,
  reference,
  targets,
  token_classes,
  transfer,
)
from specialize_jax.align import student as student_lib

_RULES = {
  "paper": transfer.paper_rule,
  "whitespace": transfer.whitespace_rule,
  "chunk": transfer.chunk_rule,
  "marginal": marginal.marginal_rule,
}
MODES = tuple(_RULES)

NOT_UNICODE = "the text is not Unicode (a lone surrogate)"
NO_STUDENT_TOKEN = "the text has no student token"


def check_mode(mode: str) -> None:
  """Checks a mode's name.

  Raises:
    UserError: there is no such mode.
  """
  if mode not in MODES:
    raise errors.UserError(
      f"mode {mode!r} is unknown; expected one of: {', '.join(MODES)}"
    )


def align_sample(
  tokens: Sequence[targets.TeacherToken],
  text: str,
  *,
  student: student_lib.StudentTokenizer,
  mode: str,
) -> targets.AlignedTargets | targets.Rejected:
  """Aligns one rationale and transfers the teacher's distributions.

  Args:
    tokens: The teacher's tokens; they spell `text`.
    text: The rationale.
    student: The student's tokenizer.
    mode: One of `MODES`.

  Returns:
    One target a student token; or why there is none: the text is empty, or
    not Unicode, or (`marginal`) the teacher gives a sampled token
    probability 0, so that the tree has no weight beyond it.

  Raises:
    UserError: there is no such mode.
    ValueError: the tokens do not spell the text.
  """
  check_mode(mode)
  try:
    encoded = text.encode("utf-8")
  except UnicodeEncodeError:
    return targets.Rejected(NOT_UNICODE)
  if b"".join(token.spelling for token in tokens) != encoded:
    raise ValueError("the tokens do not spell the text")
  laid = reference.lay(tokens, text, student)
  if not laid.encoding.ids:
    return targets.Rejected(NO_STUDENT_TOKEN)
  result = _RULES[mode](laid, student)
  if isinstance(result, targets.Rejected):
    return result
  top_ids_TC, top_log_probs_TC = targets.stack(result.targets)
  kinds_T = np.array([target.kind for target in result.targets], np.uint8)
  offered = _mass_offered(laid)
  return targets.AlignedTargets(
    ids_T=np.array(laid.encoding.ids, np.int32),
    pieces=laid.encoding.pieces,
    top_ids_TC=top_ids_TC,
    top_log_probs_TC=top_log_probs_TC,
    mask_T=(kinds_T != targets.Kind.ONE_HOT).astype(np.uint8),
    kinds_T=kinds_T,
    classes_T=_classes(laid),
    groups=result.groups,
    characters_lost=laid.encoding.characters_lost,
    mass_offered=offered,
    mass_kept=min(result.mass_kept, offered),
  )


def _classes(laid: reference.Laid) -> np.ndarray:
  ranks = reference.visible_ranks(laid.text)
  return token_classes.of_tokens(
    np.array(list(map(token_classes.of_piece, laid.encoding.pieces)), np.uint8),
    ranks[[start for start, _ in laid.encoding.spans]],
    token_classes.line_starts(laid.text, ranks),
  )


def _mass_offered(laid: reference.Laid) -> float:
  """Sums the probability that the teacher's visible tokens name.

  A token's share is at most 1, whatever the API's rounding makes of it.
  """
  shares = []
  for token, blank in zip(laid.tokens, laid.blank, strict=True):
    log_probs = [token.log_prob, *(p for _, p in transfer.distinct(token))]
    share = math.fsum(map(math.exp, log_probs))
    shares.append(0.0 if blank else min(1.0, share))
  return math.fsum(shares)
