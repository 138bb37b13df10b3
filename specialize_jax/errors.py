"""The exception for errors that the user can correct."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
  """An error in the user's input: a flag, a gin binding, a file or a name.

  The message is one sentence with the argument as the user wrote it, its value,
  what was expected, and how to correct it. `specialize` prints only the message
  and exits with status 2, or 1 for a `PassingError`; any other exception is a
  defect or a failure of the machine, and is printed with its traceback and exit
  status 1.
  """


class PassingError(UserError):
  """An error that may heal by itself, such as of a bucket that is overloaded.

  `specialize` exits with status 1, on which a supervisor starts it again.
  """


class ReportError(UserError):
  """Several mistakes in a file of the user, reported at once.

  Attributes:
    lines: one for each mistake, which begins with its file and line.
  """

  def __init__(self, summary: str, lines: Sequence[str]) -> None:
    """Creates an error from a summary and the single mistakes."""
    super().__init__(f"{summary}: {'; '.join(lines)}")
    self.summary = summary
    self.lines = tuple(lines)


MAX_STEPS = 2**31 - 1
"""Largest step of a run: steps are int32 on a device."""

MAX_COUNT = 2**31 - 1
"""Largest number of rows, tokens and so on, which are int32 on a device."""

MAX_SEED = 2**32 - 1
"""Largest random seed."""


def require_range(
  name: str,
  value: float | None,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
) -> None:
  """Raises UserError for a number out of range, or nan.

  Args:
    name: the argument, as the user wrote it or can find it.
    value: the number; None means "not set", and passes.
    at_least: the smallest possible value.
    above: a value that the number must be greater than.
    at_most: the greatest possible value.
    below: a value that the number must be less than.

  Example:
    >>> require_range("LoopConfig.log_every", 0, at_least=1)
    Traceback (most recent call last):
    ...
    specialize_jax.errors.UserError: LoopConfig.log_every=0 is not possible: \
expected at least 1.
  """
  if value is None:
    return
  limits = (
    ("at least", at_least, lambda limit: value >= limit),
    ("more than", above, lambda limit: value > limit),
    ("at most", at_most, lambda limit: value <= limit),
    ("less than", below, lambda limit: value < limit),
  )
  given = [
    (words, limit, fits) for words, limit, fits in limits if limit is not None
  ]
  if not all(fits(limit) for _, limit, fits in given):
    expected = " and ".join(f"{words} {limit}" for words, limit, _ in given)
    raise UserError(f"{name}={value} is not possible: expected {expected}.")


def did_you_mean(given: str, known: Iterable[str]) -> str:
  """Returns "did you mean A or B?" for the names most similar to `given`.

  Args:
    given: a name that is not known.
    known: the names that are.

  Returns:
    The question; an empty string if no name is similar.

  Example:
    >>> did_you_mean("trian", ["train", "eval"])
    'did you mean train?'
  """
  known = sorted(known)
  near = [given] if given in known else []
  near = near or [n for n in known if n.casefold() == given.casefold()]
  near = near or difflib.get_close_matches(given, known, n=3, cutoff=0.6)
  # A slip of one letter is not also a slip of a whole word.
  alike = [difflib.SequenceMatcher(None, given, name).ratio() for name in near]
  near = [
    name
    for name, ratio in zip(near, alike, strict=True)
    if ratio > alike[0] - 0.1
  ]
  return f"did you mean {' or '.join(near)}?" if near else ""
