"""Demonstrations for in-context prompts, drawn for many examples at once."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from specialize_jax import errors
from specialize_jax.cot import formats


def read(
  data_format: formats.DataFormat,
  read_demonstrations: Callable[[], Sequence[formats.Demonstration]] | None,
) -> Sequence[formats.Demonstration]:
  """Reads the demonstrations that an in-context format draws from.

  Raises:
    UserError: there are none.
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
  """Returns demonstrations by question; repeated questions count once.

  Raises:
    UserError: there are no more demonstrations than are to be drawn.
  """
  by_question = {one.question.strip(): one for one in demonstrations}
  if len(by_question) <= num_demonstrations:
    raise errors.UserError(
      f"num_demonstrations={num_demonstrations} (student.demonstrations of a"
      f" dataset file): expected fewer than the {len(by_question)} different"
      " questions that are solved, since none may show itself"
    )
  return by_question


class Drawer:
  """Draws demonstrations for questions, which are named by number.

  Attributes:
    demonstrations: those drawn from; `draw` returns indices into them.
  """

  def __init__(
    self,
    demonstrations: Sequence[formats.Demonstration],
    num_demonstrations: int,
    *,
    asked: Sequence[str],
  ) -> None:
    """Finds the demonstrations that are themselves among the questions.

    Args:
      demonstrations: what to draw from; repeated questions count once.
      num_demonstrations: how many to draw.
      asked: the questions; `draw` takes indices into them.

    Raises:
      UserError: there are no more demonstrations than are to be drawn.
    """
    by_question = different(demonstrations, num_demonstrations)
    self.demonstrations = list(by_question.values())
    self._count = num_demonstrations
    numbers = {question: number for number, question in enumerate(by_question)}
    self._own = tf.constant(
      [numbers.get(question.strip(), -1) for question in asked], tf.int64
    )

  def draw(self, places: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws for a batch.

    Args:
      places: int [B], indices into `asked`.
      seed: int64 [2].

    Returns:
      int64 [B, num_demonstrations]: distinct indices in random order, never
      that of the question itself.
    """
    # One more than needed: at most one of them is the question itself.
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

  Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", 1987) draws
  the set with `count` random numbers, however large `total` is; ordering the
  set by random keys then makes its order uniform too.

  Args:
    num_rows: number of rows.
    total: exclusive upper bound, at least `count`.
    count: how many to draw in each row.
    seed: int64 [2].

  Returns:
    int64 [num_rows, count].
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
  keys = tf.random.stateless_uniform(shape, seed + 1, dtype=tf.float64)
  order = tf.argsort(keys, axis=1)
  return tf.gather(chosen, order, axis=1, batch_dims=1)
