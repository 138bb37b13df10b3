"""T5's pre-training objective: predict the spans that sentinels replace.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer" (JMLR 2020), section 3.1.4 and figure 2;
spans as in section 3.3.4 (15 % of the tokens in spans of 3 on average).
"""

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import features


def span_corruption(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, seqio.Feature],
  sequence_length: Mapping[str, int] | None = None,
  *,
  noise_density: float = 0.15,
  mean_span_tokens: float = 3.0,
) -> tf.data.Dataset:
  """Replaces `text` by corrupted `inputs` and the hidden spans as `targets`.

  If a text is longer than a row, or has too many spans for the sentinels, a
  random window of it is used; a text of a single token is dropped.

  Example. With sentinels 99, 98, ... and the spans (12) and (15 16) hidden, the
  tokens 11 12 13 14 15 16 become

    inputs   11 99 13 14 98 EOS
    targets  99 12 98 15 16 EOS

  Args:
    dataset: Rows with `text`; `question_id` is kept.
    output_features: The task's output features; sentinels are the vocabulary's
      highest ids.
    sequence_length: The task feature lengths; None for no limit.
    noise_density: The fraction of tokens to hide, in (0, 1).
    mean_span_tokens: The mean length of a hidden span, in tokens.

  Raises:
    UserError: the vocabulary has no sentinels.
  """
  vocabulary = output_features[features.INPUTS].vocabulary
  if not vocabulary.extra_ids:
    raise errors.UserError(
      "span corruption needs sentinels, and the vocabulary has none: give it"
      " extra_ids, of T5 100"
    )
  limit = int(vocabulary.extra_ids * mean_span_tokens / noise_density)
  if sequence_length is not None:
    limit = min(limit, sequence_length[features.INPUTS] - 1)
  limit = max(limit, 2)  # one token to hide and one to keep
  tokenized = dataset.map(
    lambda row: {**row, "text": vocabulary.encode_tf(row["text"])},
    num_parallel_calls=tf.data.AUTOTUNE,
  ).filter(lambda row: tf.size(row["text"]) > 1)

  @seqio.map_over_dataset(num_seeds=3)
  @tf.autograph.experimental.do_not_convert
  def corrupt(
    row: Mapping[str, tf.Tensor], seeds: Sequence[Sequence[tf.Tensor]]
  ) -> Mapping[str, tf.Tensor]:
    row = dict(row)
    tokens = tf.cast(row.pop("text"), tf.int32)
    tokens = window(tokens, limit, tf.stack(seeds[0]))
    is_noise = noise_mask(
      tf.size(tokens),
      noise_density=noise_density,
      mean_span_tokens=mean_span_tokens,
      keys=(tf.stack(seeds[1]), tf.stack(seeds[2])),
    )
    first_sentinel = vocabulary.vocab_size - 1
    eos = tf.constant([vocabulary.eos_id], tf.int32)
    return {
      **row,
      features.INPUTS: tf.concat(
        [hide(tokens, is_noise, first_sentinel), eos], 0
      ),
      features.TARGETS: tf.concat(
        [hide(tokens, ~is_noise, first_sentinel), eos], 0
      ),
    }

  return corrupt(tokenized)


def window(tokens: tf.Tensor, limit: int, key: tf.Tensor) -> tf.Tensor:
  """Returns at most `limit` adjacent tokens, from a uniformly random start."""
  latest = tf.maximum(tf.size(tokens) - limit, 0)
  start = tf.random.stateless_uniform(
    [], key, maxval=latest + 1, dtype=tf.int32
  )
  return tokens[start : start + limit]


def noise_mask(
  length: tf.Tensor,
  *,
  noise_density: float,
  mean_span_tokens: float,
  keys: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
  """Draws which of `length` tokens to hide.

  Spans to keep and to hide alternate, beginning with one to keep. The arguments
  determine their number and total lengths; all ways of splitting a total into
  that many positive lengths are equally likely.

  Args:
    length: int32 scalar, at least 2.
    noise_density: The fraction of tokens to hide.
    mean_span_tokens: The mean length of a hidden span.
    keys: Two int64[2] seeds.

  Returns:
    bool[length].
  """
  wanted = tf.cast(length, tf.float32) * noise_density
  num_noise = tf.clip_by_value(
    tf.cast(tf.round(wanted), tf.int32), 1, length - 1
  )
  num_kept = length - num_noise
  spans = tf.cast(
    tf.round(tf.cast(num_noise, tf.float32) / mean_span_tokens), tf.int32
  )
  spans = tf.clip_by_value(spans, 1, tf.minimum(num_noise, num_kept))
  kept = _random_parts(num_kept, spans, keys[0])
  hidden = _random_parts(num_noise, spans, keys[1])
  lengths = tf.reshape(tf.stack([kept, hidden], 1), [-1])
  is_hidden = tf.tile([False, True], [spans])
  return tf.repeat(is_hidden, lengths)


def hide(
  tokens: tf.Tensor, hidden: tf.Tensor, first_sentinel: int
) -> tf.Tensor:
  """Replaces each run of hidden tokens by a sentinel, counting down.

  Args:
    tokens: int32[length].
    hidden: bool[length].
    first_sentinel: The id of the first sentinel.
  """
  starts = hidden & ~tf.pad(hidden, [[1, 0]])[:-1]
  index = tf.cumsum(tf.cast(starts, tf.int32)) - 1
  replaced = tf.where(starts, first_sentinel - index, tokens)
  return tf.boolean_mask(replaced, starts | ~hidden)


def _random_parts(
  total: tf.Tensor, parts: tf.Tensor, key: tf.Tensor
) -> tf.Tensor:
  """Splits `total` into `parts` positive parts, each split equally likely."""
  is_cut = tf.range(total - 1) < parts - 1
  is_cut = tf.random.experimental.stateless_shuffle(
    tf.cast(is_cut, tf.int32), key
  )
  part = tf.pad(tf.cumsum(is_cut), [[1, 0]])
  return tf.math.bincount(part, minlength=parts, maxlength=parts)
