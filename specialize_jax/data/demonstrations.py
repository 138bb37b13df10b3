"""Draws demonstrations for in-context prompts, in batches."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from specialize_jax import errors
from specialize_jax.cot import formats


def read(
  data_format: formats.DataFormat,
  read_demonstrations: Callable[[], Sequence[formats.Demonstration]] | None,
) -> Sequence[formats.Demonstration]:
  """Reads the demonstrations from which an in-context format draws.

  Raises:
    UserError: the format needs demonstrations, and `read_demonstrations` is
      None.
  """
  if read_demonstrations is None:
    raise errors.UserError(
      f"data format {data_format.name!r} needs demonstrations: pass"
      " read_demonstrations, or use a zero-shot format"
    )
  return read_demonstrations()


def different(
  demonstrations: Sequence[formats.Demonstration], num_demonstrations: int
) -> dict[str, formats.Demonstration]:
  """Returns demonstrations by question, without repeated questions.

  Raises:
    UserError: there are not more than `num_demonstrations`.
  """
  by_question = {one.question.strip(): one for one in demonstrations}
  if len(by_question) <= num_demonstrations:
    raise errors.UserError(
      f"num_demonstrations={num_demonstrations} (student.demonstrations of a"
      f" dataset file): expected fewer than the {len(by_question)} different"
      " questions that are solved, since none may show itself"
    )
  return by_question


def stripped(text: tf.Tensor) -> tf.Tensor:
  """Strips texts as Python does, also of blanks that are not ASCII."""
  blank = r"[\s\p{Z}\x{0b}\x{1c}-\x{1f}\x{85}]+"
  return tf.strings.regex_replace(text, f"^{blank}|{blank}$", "")


class Drawer:
  """Draws demonstrations for questions, in TensorFlow.

  Attributes:
    demonstrations: All demonstrations; `draw` returns indices into them.
  """

  def __init__(
    self,
    demonstrations: Sequence[formats.Demonstration],
    num_demonstrations: int,
    *,
    asked: Sequence[str],
  ) -> None:
    """Finds the demonstrations that are among the questions themselves.

    Args:
      demonstrations: The demonstrations, in which questions may be repeated.
      num_demonstrations: The number to draw for each question.
      asked: The questions; the argument of `draw` are indices into them.

    Raises:
      UserError: there are not more than `num_demonstrations`.
    """
    by_question = different(demonstrations, num_demonstrations)
    self.demonstrations = list(by_question.values())
    self._count = num_demonstrations
    numbers = {question: number for number, question in enumerate(by_question)}
    self._own = tf.constant(
      [numbers.get(question.strip(), -1) for question in asked], tf.int64
    )

  def draw(self, places: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws demonstrations for a batch of questions.

    Args:
      places: int[B], indices of the questions.
      seed: int64[2].

    Returns:
      int64[B, num_demonstrations], distinct indices in random order, never that
      of the question itself.
    """
    # One more than needed, since one of them may be the question itself.
    drawn = distinct_rows(
      tf.shape(places)[0], len(self.demonstrations), self._count + 1, seed
    )
    own = tf.gather(self._own, places)[:, None]
    order = tf.argsort(tf.cast(drawn == own, tf.int32), axis=1, stable=True)
    return tf.gather(drawn, order, axis=1, batch_dims=1)[:, : self._count]


def distinct_rows(
  num_rows: tf.Tensor, total: int, count: int, seed: tf.Tensor
) -> tf.Tensor:
  """Draws `count` distinct numbers below `total` for each row, in random order.

  Args:
    num_rows: The number of rows.
    total: The exclusive upper bound, at least `count`.
    count: The number of draws in each row.
    seed: int64[2].

  Returns:
    int64[num_rows, count].
  """
  chosen = distinct_sets(num_rows, total, count, seed)
  keys = tf.random.stateless_uniform(
    tf.shape(chosen), seed + 1, dtype=tf.float64
  )
  return tf.gather(chosen, tf.argsort(keys, axis=1), axis=1, batch_dims=1)


def distinct_sets(
  num_rows: tf.Tensor | int, total: int, count: int, seed: tf.Tensor
) -> tf.Tensor:
  """Draws a uniform set of `count` numbers below `total` for each row.

  Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", 1987) needs
  only `count` random numbers, however large `total` is. The order of the result
  is not uniform.

  Args:
    num_rows: The number of rows.
    total: The exclusive upper bound, at least `count`.
    count: The number of draws in each row.
    seed: int64[2].

  Returns:
    int64[num_rows, count].
  """
  shape = tf.stack([num_rows, count])
  uniform = tf.random.stateless_uniform(shape, seed, dtype=tf.float64)
  limits = tf.range(total - count + 1, total + 1, dtype=tf.int64)
  drawn = tf.cast(uniform * tf.cast(limits, tf.float64), tf.int64)
  chosen = drawn[:, :1]
  for i in range(1, count):
    taken = tf.reduce_any(chosen == drawn[:, i : i + 1], axis=1)
    number = tf.where(taken, limits[i] - 1, drawn[:, i])
    chosen = tf.concat([chosen, number[:, None]], 1)
  return chosen
