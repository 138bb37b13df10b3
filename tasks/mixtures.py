"""The mixtures that runs name; importing this registers every task.

  gsm8k_specialize_v1              training: four formats of teacher data
  math_ood_validation_v1           what checkpoints are selected by
  math_all_validation_v1           the same and GSM8K, to compare the rules
  math_all_test_v1, math_test_v1   GSM8K and the three others
  bbh_chain_of_thought_v1, bbh_answer_only_v1,
  bbh_answer_only_paper_code_v1    the price in general ability
  mini_pretrain_v1                 training: the mini world's general ability
  mini_specialize_v1, mini_math_ood_validation_v1,
  mini_math_all_validation_v1, mini_math_all_test_v1, mini_math_test_v1,
  mini_general_v1                  the mini world's twins

Mathematics is zero-shot with chain of thought and BIG-Bench-Hard in-context,
as in the paper; a name with a format before its version, such as
math_all_test_in_context_answer_only_v1 or bbh_zero_shot_answer_only_v1, is
the same in that format. A mixture for evaluation without its version,
`math_ood_validation`, is its newest.

A mixture's split is the evaluation's; one that is called after a split is
evaluated on that split only.

Mixing rates are arguments of the functions below, which gin can bind and
call in place of a name:

  MIXTURE_OR_TASK_NAME = @mixtures.specialize()
  mixtures.specialize.name = "gsm8k_zero_shot"
  mixtures.specialize.dataset = "gsm8k"
  mixtures.specialize.in_context_answer_only = 0.0
  mixtures.specialize.in_context_chain_of_thought = 0.0
"""

from collections.abc import Callable, Mapping, Sequence

import seqio

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.evaluation import benchmarks
from tasks import asdiv, bbh, gsm8k, mini, multiarith, svamp

# Importing a dataset's file registers its tasks.
DATASETS = (asdiv, bbh, gsm8k, mini, multiarith, svamp)

_ZERO_SHOT = (formats.ZERO_SHOT_CHAIN_OF_THOUGHT, formats.ZERO_SHOT_ANSWER_ONLY)


Rate = float | Callable[[seqio.Task], float]


def add_mixture(name: str, rates: Sequence[tuple[str, Rate]]) -> str:
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
  elif _comparable(dict(rates)) != _comparable(
    seqio.MixtureRegistry.get(name).rate_per_task_name
  ):
    raise errors.UserError(
      f"mixture {name!r} is registered with other rates: a registered mixture"
      " never changes, so give this one its own name"
    )
  return name


def _comparable(rates: Mapping[str, Rate]) -> Mapping[str, float | str]:
  """Names functions, which differ when a module is imported anew."""
  return {
    task: getattr(rate, "__qualname__", rate) for task, rate in rates.items()
  }


def num_examples(task: seqio.Task) -> float:
  """The rate that shows every example of a mixture equally often."""
  return float(task.num_input_examples("train"))


def specialize(
  *,
  name: str,
  dataset: str,
  in_context_answer_only: Rate = num_examples,
  in_context_chain_of_thought: Rate = num_examples,
  zero_shot_answer_only: Rate = num_examples,
  zero_shot_chain_of_thought: Rate = num_examples,
) -> str:
  """Registers the four formats of a teacher's data as one mixture.

  By default a format's share is its number of examples, as in the paper:
  one a question for answer-only formats, one a right sample for
  chain-of-thought formats (about 7,100 and 207,619 there).

  Args:
    name: of the mixture.
    dataset: whose teacher data, `gsm8k` or `mini_gsm`.
    in_context_answer_only: rate of this format: a number, or a function of
      the task. 0 leaves the format out.
    in_context_chain_of_thought: the same.
    zero_shot_answer_only: the same.
    zero_shot_chain_of_thought: the same.

  Returns:
    The name.
  """
  rates = {
    formats.IN_CONTEXT_ANSWER_ONLY: in_context_answer_only,
    formats.IN_CONTEXT_CHAIN_OF_THOUGHT: in_context_chain_of_thought,
    formats.ZERO_SHOT_ANSWER_ONLY: zero_shot_answer_only,
    formats.ZERO_SHOT_CHAIN_OF_THOUGHT: zero_shot_chain_of_thought,
  }
  return add_mixture(
    name,
    [
      (f"{dataset}_teacher_{data_format.name}_v1", rate)
      for data_format, rate in rates.items()
    ],
  )


def mini_pretrain(
  *,
  name: str = "mini_pretrain_v1",
  chain_of_thought_rate: float = 1.0,
  answer_only_rate: float = 1.0,
  facts_rate: float = 4.0,
  weak_maths_rate: float = 6.0,
  sums_rate: float = 4.0,
  reading_rate: float = 4.0,
  text_rate: float = 2.0,
) -> str:
  """Registers general pre-training, the mini world's stand-in for FlanT5.

  Args:
    name: of the mixture.
    chain_of_thought_rate: of each general task, zero-shot.
    answer_only_rate: of each general task, zero-shot.
    facts_rate: of sums without a story.
    weak_maths_rate: of one-step problems, for their bare answers.
    sums_rate: of one-step problems, for the sum that they ask for.
    reading_rate: of listing a story's names and numbers.
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
      ("mini_facts_v1", facts_rate),
      ("mini_weak_maths_v1", weak_maths_rate),
      ("mini_sums_v1", sums_rate),
      ("mini_reading_v1", reading_rate),
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


def _add_evaluation(name: str, rates: Sequence[tuple[str, Rate]]) -> None:
  """Registers a mixture for evaluation under `NAME_v1` and as `NAME`."""
  add_mixture(f"{name}_v1", rates)
  add_mixture(name, rates)


def _add_formats(name: str, datasets: Sequence[str]) -> None:
  """Registers some datasets in each format, and in the paper's."""
  for data_format in formats.FORMATS:
    _add_evaluation(
      f"{name}_{data_format.name}", _evaluated(datasets, data_format)
    )
  _add_evaluation(name, _evaluated(datasets, _COT))


_COT = formats.ZERO_SHOT_CHAIN_OF_THOUGHT
_OUT_OF_DISTRIBUTION = ("multiarith", "asdiv", "svamp")

specialize(name="gsm8k_specialize_v1", dataset="gsm8k")
_add_formats("math_ood_validation", _OUT_OF_DISTRIBUTION)
_add_formats("math_all_validation", benchmarks.MATHS)
_add_formats("math_all_test", benchmarks.MATHS)
_add_evaluation("math_test", _evaluated(benchmarks.MATHS, _COT))
for _prompt, _, _ in bbh.PROMPTS:
  _add_evaluation(
    f"bbh_{_prompt.removeprefix('in_context_')}",
    [(f"bbh_{task}_{_prompt}_v1", 1.0) for task in benchmarks.BIG_BENCH_HARD],
  )

mini_pretrain()
specialize(name="mini_specialize_v1", dataset="mini_gsm")
_add_formats("mini_math_ood_validation", mini.OUT_OF_DISTRIBUTION)
_add_formats("mini_math_all_validation", mini.MATHS)
_add_formats("mini_math_all_test", mini.MATHS)
_add_evaluation("mini_math_test", _evaluated(mini.MATHS, _COT))
for _format in formats.FORMATS:
  _add_evaluation(
    f"mini_general_{_format.name}", _evaluated(mini.GENERAL, _format)
  )
_add_evaluation("mini_general", _evaluated(mini.GENERAL, *_ZERO_SHOT))
