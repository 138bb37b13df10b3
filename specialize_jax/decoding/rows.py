"""Rows of a file of inputs as requests, all checked before any is decoded.

An input row has "text" or "input_ids"; ids go before text where a row has
both. A row that also has "target_ids" or "target" is scored.

A text is encoded and ended with EOS, as T5's inputs and targets are; ids are
taken as they are, but for padding at their end. So a scored text has one
log-probability for its EOS too: without it a target would count as well as
any longer text that begins with it, and its sum would not be that of the
decoded sequence, which EOS ends. Ids say themselves whether they end.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import requests
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.t5 import config as t5_config

Row = Mapping[str, object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """Turns rows into requests.

  Attributes:
    where: the file, as messages call it.
    vocab_size: rows of the model's embedding.
    vocabulary: for texts; None if none is known.
    input_limit: the most tokens of an input.
    truncate: whether a longer input is cut, its EOS kept; else it is an
      error.
  """

  where: str
  vocab_size: int
  vocabulary: vocabularies.Vocabulary | None
  input_limit: int
  truncate: bool = False

  def read(
    self, rows: Sequence[tuple[int, Row]]
  ) -> tuple[list[requests.Request], int]:
    """Checks and encodes every row.

    Args:
      rows: as `reading.read_numbered_rows` returns them, each with the number
        of its line. The first is request 0, whatever its line.

    Returns:
      One request a row, and how many inputs were cut.

    Raises:
      UserError: a row has no input, or one that the model cannot take.
    """
    if self.input_limit < 1:
      raise errors.UserError(
        f"max_input_length is {self.input_limit}, and must be at least 1."
      )
    asked, num_cut = [], 0
    for number, (line, row) in enumerate(rows):
      where = f"{self.where}, line {line}"
      input_ids = self._ids(row, "input_ids", "text", where)
      if input_ids is None:
        raise errors.UserError(
          f'{where} has neither "text" nor "input_ids": give one of them.'
        )
      if len(input_ids) > self.input_limit:
        input_ids = self._cut(input_ids, where)
        num_cut += 1
      asked.append(
        requests.Request(
          number=number,
          input_ids=input_ids,
          target_ids=self._target(row, where),
        )
      )
    return asked, num_cut

  def _target(self, row: Row, where: str) -> np.ndarray | None:
    target_ids = self._ids(row, "target_ids", "target", where)
    if target_ids is not None and (target_ids == t5_config.PAD_ID).any():
      raise errors.UserError(
        f'{where}: "target_ids" holds {t5_config.PAD_ID}, which is padding '
        "and is not scored: leave it out."
      )
    return target_ids

  def _ids(
    self, row: Row, ids_key: str, text_key: str, where: str
  ) -> np.ndarray | None:
    """Gives the ids under one key, or of the text under the other."""
    if row.get(ids_key) is not None:
      return self._checked(row[ids_key], ids_key, where)
    text = row.get(text_key)
    if text is None:
      return None
    if not isinstance(text, str):
      raise errors.UserError(
        f'{where}: "{text_key}" is {str(text)[:40]!r}, and must be a text.'
      )
    if self.vocabulary is None:
      raise errors.UserError(
        f'{where} has "{text_key}", and no vocabulary lies beside the '
        f'checkpoint: give --vocabulary=spiece.model, or rows of "{ids_key}".'
      )
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise errors.UserError(
        f'{where}: "{text_key}" holds half of a surrogate pair, which is no '
        "text: mend the row."
      ) from error
    ids = self.vocabulary.encode(text)
    return np.array(vocabularies.with_eos(ids), np.int32)

  def _checked(self, ids: object, key: str, where: str) -> np.ndarray:
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
      raise errors.UserError(
        f'{where}: "{key}" is {str(ids)[:40]!r}, and must be a list of whole '
        "numbers."
      )
    outside = [i for i in ids if not 0 <= i < self.vocab_size]
    if outside:
      raise errors.UserError(
        f'{where}: "{key}" holds {outside[0]}, and the model\'s ids are 0 to '
        f"{self.vocab_size - 1}: give ids of the model's own vocabulary."
      )
    used = np.flatnonzero(ids)
    if not used.size:
      raise errors.UserError(
        f'{where}: "{key}" is empty: give at least one token, such as '
        f"{t5_config.EOS_ID}, the end of sequence."
      )
    return np.array(ids[: used[-1] + 1], np.int32)

  def _cut(self, input_ids: np.ndarray, where: str) -> np.ndarray:
    if not self.truncate:
      raise errors.UserError(
        f"{where}: the input has {len(input_ids):,} tokens, and at most "
        f"{self.input_limit:,} are taken: raise --max_input_length, or cut "
        "such inputs with --truncate."
      )
    cut = input_ids[: self.input_limit].copy()
    if input_ids[-1] == t5_config.EOS_ID:
      cut[-1] = t5_config.EOS_ID
    return cut


def output_row(
  row: Row, result: requests.Result, *, log_probs: bool
) -> dict[str, object]:
  """Gives a row with what came of it.

  Args:
    row: the input; its other fields are kept.
    result: what came of it.
    log_probs: whether each token's is given.

  Returns:
    The row with "target_log_probs" if it was scored, else with "output_ids"
    and, if texts are known, "output". Of several outputs these are the one
    that stands for the row (a beam's best, the first sample, or the winner of
    the vote), and "outputs" lists them all, each with its "score". Votes add
    "voted_answer" and "vote_shares".
  """
  if result.target_log_probs is not None:
    return {**row, "target_log_probs": _numbers(result.target_log_probs)}
  given = {**row, **_fields(result.output, log_probs)}
  if result.vote is not None:
    # The input's own "answer" is what this one may be graded against.
    given["voted_answer"] = result.vote.answer
    given["vote_shares"] = dict(result.vote.shares)
  if len(result.sequences) > 1:
    given["outputs"] = [
      {**_fields(one, log_probs), "score": _number(one.score)}
      for one in result.sequences
    ]
  return given


def _fields(output: requests.Output, log_probs: bool) -> dict[str, object]:
  fields: dict[str, object] = {"output_ids": output.ids.tolist()}
  if output.text is not None:
    fields["output"] = output.text
  if log_probs:
    fields["output_log_probs"] = _numbers(output.log_probs)
  return fields


def _numbers(values: np.ndarray) -> list[float]:
  return [_number(value) for value in values]


def _number(value: float) -> float:
  """The shortest decimal that is this float32."""
  return float(str(np.float32(value)))
