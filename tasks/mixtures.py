"""The mixtures that runs name; importing this registers every task.

Training:    mini_pretrain_v1
Evaluation:  mini_math_ood_validation_v1, mini_math_test_v1, mini_general_v1

Mixing rates are arguments of the functions below, which gin can bind and
call in place of a name:

  MIXTURE_OR_TASK_NAME = @mixtures.mini_pretrain()
  mixtures.mini_pretrain.name = "mini_pretrain_more_text"
  mixtures.mini_pretrain.text_rate = 2.0
"""

from collections.abc import Sequence

import seqio

from specialize_jax import errors
from specialize_jax.cot import formats
from tasks import mini

_ZERO_SHOT = (formats.ZERO_SHOT_CHAIN_OF_THOUGHT, formats.ZERO_SHOT_ANSWER_ONLY)


def add_mixture(
  name: str, rates: Sequence[tuple[str, seqio.dataset_providers.MixtureRate]]
) -> str:
  """Registers a mixture, unless the very same is; gives its name.

  Args:
    name: the new name.
    rates: each task with its rate: its share of the examples, up to a
      common factor. A rate of 0 leaves the task out.

  Raises:
    UserError: the name is taken by another mixture, or no rate is above 0.
  """
  rates = [(task, rate) for task, rate in rates if rate != 0]
  if not rates:
    raise errors.UserError(
      f"mixture {name!r} is empty: expected at least one rate above 0"
    )
  if name not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add(name, rates)
  elif dict(rates) != seqio.MixtureRegistry.get(name).rate_per_task_name:
    raise errors.UserError(
      f"mixture {name!r} is registered with other rates: a registered mixture"
      " never changes, so give this one its own name"
    )
  return name


def mini_pretrain(
  *,
  name: str = "mini_pretrain_v1",
  chain_of_thought_rate: float = 1.0,
  answer_only_rate: float = 1.0,
  weak_maths_rate: float = 2.0,
  text_rate: float = 1.0,
) -> str:
  """Registers general pre-training, the mini world's stand-in for FlanT5.

  Args:
    name: of the mixture.
    chain_of_thought_rate: of each general task, zero-shot.
    answer_only_rate: of each general task, zero-shot.
    weak_maths_rate: of arithmetic facts and one-step problems.
    text_rate: of span corruption.

  Returns:
    The name.
  """
  general = [
    (
      f"{task}_pretrain_{data_format.name}_v1",
      chain_of_thought_rate
      if data_format.chain_of_thought
      else answer_only_rate,
    )
    for task in mini.GENERAL
    for data_format in _ZERO_SHOT
  ]
  return add_mixture(
    name,
    [
      *general,
      ("mini_weak_maths_v1", weak_maths_rate),
      ("mini_text_span_corruption_v1", text_rate),
    ],
  )


def _evaluated(
  datasets: Sequence[str], *data_formats: formats.DataFormat
) -> list[tuple[str, float]]:
  return [
    (f"{dataset}_{data_format.name}_v1", 1.0)
    for dataset in datasets
    for data_format in data_formats
  ]


mini_pretrain()
add_mixture(
  "mini_math_ood_validation_v1",
  _evaluated(mini.OUT_OF_DISTRIBUTION, formats.ZERO_SHOT_CHAIN_OF_THOUGHT),
)
add_mixture(
  "mini_math_test_v1",
  _evaluated(mini.MATHS, formats.ZERO_SHOT_CHAIN_OF_THOUGHT),
)
add_mixture("mini_general_v1", _evaluated(mini.GENERAL, *_ZERO_SHOT))
