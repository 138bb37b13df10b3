"""Converts rows of an input file to requests, all validated before decoding.

An input row has "text" or "input_ids"; ids take precedence if a row has both. A
row that also has "target_ids" or "target" is scored.

A text is encoded and EOS is appended, as for T5's inputs and targets; ids are
used as given, without trailing padding. A scored text therefore has a
log-probability for its EOS: without it, the score would be that of all texts
that begin with the target, and would differ from that of the decoded sequence,
which ends with EOS. Ids include EOS or not as given.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import requests
from specialize_jax.decoding import vocabulary as vocabularies
from specialize_jax.files import writing
from specialize_jax.t5 import config as t5_config

Row = Mapping[str, object]

# Fields that `output_row` adds, replacing fields of the input.
_ADDED = frozenset(
  ("output_ids", "output", "output_log_probs", "outputs", "voted_answer",
   "vote_shares", "target_log_probs")
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """Converts rows to requests.

  Attributes:
    where: the name of the file in error messages.
    model: the config of the model: its ids and special tokens.
    vocabulary: encodes texts; None if there is none.
    input_limit: maximum number of tokens of an input.
    truncate: whether to truncate longer inputs, keeping their EOS, instead of
      raising an error.
  """

  where: str
  model: t5_config.T5Config
  vocabulary: vocabularies.Vocabulary | None
  input_limit: int
  truncate: bool = False

  def read(
    self, rows: Sequence[tuple[int, Row]]
  ) -> tuple[list[requests.Request], int]:
    """Validates and encodes every row.

    Args:
      rows: line numbers and rows, as `reading.read_numbered_rows` returns them.
        The first row is request 0, whatever its line number.

    Returns:
      One request per row, and the number of truncated inputs.

    Raises:
      UserError: a row has no input, or an invalid one.
    """
    if self.input_limit < 1:
      raise errors.UserError(
        f"max_input_length is {self.input_limit}, and must be at least 1."
      )
    asked, num_truncated = [], 0
    for number, (line, row) in enumerate(rows):
      where = f"{self.where}, line {line}"
      input_ids = self._ids(row, "input_ids", "text", where)
      if input_ids is None:
        raise errors.UserError(
          f'{where} has no "question", "text" or "input_ids": give one of them.'
        )
      if len(input_ids) > self.input_limit:
        input_ids = self._truncated(input_ids, where)
        num_truncated += 1
      asked.append(
        requests.Request(
          number=number,
          input_ids=input_ids,
          target_ids=self._target(row, where),
        )
      )
    return asked, num_truncated

  def _target(self, row: Row, where: str) -> np.ndarray | None:
    target_ids = self._ids(row, "target_ids", "target", where)
    pad_id = self.model.pad_id
    if target_ids is not None and (target_ids == pad_id).any():
      raise errors.UserError(
        f'{where}: "target_ids" holds {pad_id}, which is padding '
        "and is not scored: leave it out."
      )
    return target_ids

  def _ids(
    self, row: Row, ids_key: str, text_key: str, where: str
  ) -> np.ndarray | None:
    """Returns the ids under one key, or those of the text under another."""
    if row.get(ids_key) is not None:
      return self._checked(row[ids_key], ids_key, where)
    text = row.get(text_key)
    if text is None:
      return None
    if not isinstance(text, str):
      raise errors.UserError(
        f'{where}: "{text_key}" is {str(text)[:40]!r}, and must be a string.'
      )
    if self.vocabulary is None:
      raise errors.UserError(
        f'{where} has "{text_key}", and there is no vocabulary beside the '
        f'checkpoint: give --vocabulary=spiece.model, or rows of "{ids_key}".'
      )
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise errors.UserError(
        f'{where}: "{text_key}" holds half of a surrogate pair, which is not '
        "text: correct the row."
      ) from error
    ids = self.vocabulary.encode(text)
    vocab_size = self.model.vocab_size
    outside = [i for i in ids if i >= vocab_size]
    if outside:
      piece = self.vocabulary.piece(outside[0])
      raise errors.UserError(
        f'{where}: "{text_key}" holds {piece!r}, token {outside[0]}, and the'
        f" model has {vocab_size:,}: take it out of the text, or give the"
        " vocabulary that the model was trained with"
      )
    return np.array([*ids, self.model.eos_id], np.int32)

  def _checked(self, ids: object, key: str, where: str) -> np.ndarray:
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
      raise errors.UserError(
        f'{where}: "{key}" is {str(ids)[:40]!r}, and must be a list of whole '
        "numbers."
      )
    vocab_size = self.model.vocab_size
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
      raise errors.UserError(
        f'{where}: "{key}" holds {outside[0]}, and the model\'s ids are 0 to '
        f"{vocab_size - 1}: give ids of the model's own vocabulary."
      )
    used = np.flatnonzero(np.array(ids) != self.model.pad_id)
    if not used.size:
      raise errors.UserError(
        f'{where}: "{key}" is empty: give at least one token, such as '
        f"{self.model.eos_id}, the end of sequence."
      )
    return np.array(ids[: used[-1] + 1], np.int32)

  def _truncated(self, input_ids: np.ndarray, where: str) -> np.ndarray:
    if not self.truncate:
      raise errors.UserError(
        f"{where}: the input has {len(input_ids):,} tokens, and at most "
        f"{self.input_limit:,} are allowed: raise --max_input_length, or "
        "truncate such inputs with --truncate."
      )
    truncated = input_ids[: self.input_limit].copy()
    if input_ids[-1] in self.model.eos_ids:
      truncated[-1] = input_ids[-1]
    return truncated


def output_row(
  row: Row, result: requests.Result, *, log_probs: bool
) -> dict[str, object]:
  """Returns an input row with the fields of its result added.

  Args:
    row: the input row; its fields are kept, but for results of another run if
      it is decoded.
    result: the result of its request.
    log_probs: whether to add the log-probability of each output token.

  Returns:
    The row with "target_log_probs" if it was scored, otherwise with
    "output_ids" and, with a vocabulary, "output". If there are several outputs,
    these are of the one that represents the row (the best beam, the first
    sample or the winner of the vote), and "outputs" lists all, each with its
    "score". A vote adds "voted_answer" and "vote_shares".
  """
  if result.target_log_probs is not None:
    return {**row, "target_log_probs": _numbers(result.target_log_probs)}
  # The input may be the output of another run, with results of its own.
  asked = {name: value for name, value in row.items() if name not in _ADDED}
  with_result = {**asked, **_fields(result.output, log_probs)}
  if result.vote is not None:
    # "answer" may be a field of the input, to grade against.
    with_result["voted_answer"] = result.vote.answer
    with_result["vote_shares"] = dict(result.vote.shares)
  if len(result.sequences) > 1:
    with_result["outputs"] = [
      {**_fields(one, log_probs), "score": _number(one.score)}
      for one in result.sequences
    ]
  return with_result


def is_output_of(output: Row, row: Row) -> bool:
  """Returns whether an output row has an input row's fields.

  Fields that are the result of an earlier run are not compared.
  """
  return all(
    # Compared as they are written: NaN is null there.
    name in _ADDED
    or (
      name in output and writing.to_json(output[name]) == writing.to_json(value)
    )
    for name, value in row.items()
  )


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
  """Returns the shortest decimal that rounds to this float32."""
  return float(str(np.float32(value)))
