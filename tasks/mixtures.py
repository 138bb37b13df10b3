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

and those that every dataset has, NAME_specialize, NAME_validation, NAME_test,
NAME_out_of_distribution_validation and NAME_general (see
`specialize_jax.datasets.registration`), of `gsm8k` and `mini`.

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

from specialize_jax.cot import formats
from specialize_jax.datasets import description, registration
from specialize_jax.evaluation import benchmarks
from specialize_jax.tasks import bbh, gsm8k, mini

DATASETS = {one.DATASET.name: one.DATASET for one in (gsm8k, mini)}
"""Every dataset that we ship, by name; importing a task's file registers it."""

_ZERO_SHOT = (formats.ZERO_SHOT_CHAIN_OF_THOUGHT, formats.ZERO_SHOT_ANSWER_ONLY)

Rate = registration.Rate
add_mixture = registration.add_mixture
num_examples = registration.num_examples


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
    dataset: whose teacher data: `gsm8k`, `mini_gsm`, or the name of your own.
    in_context_answer_only: rate of this format: a number, or a function of
      the task. 0 leaves the format out.
    in_context_chain_of_thought: the same.
    zero_shot_answer_only: the same.
    zero_shot_chain_of_thought: the same.

  Returns:
    The name.
  """
  return registration.specialize(
    name=name,
    teacher=f"{dataset}_teacher",
    rates={
      formats.IN_CONTEXT_ANSWER_ONLY: in_context_answer_only,
      formats.IN_CONTEXT_CHAIN_OF_THOUGHT: in_context_chain_of_thought,
      formats.ZERO_SHOT_ANSWER_ONLY: zero_shot_answer_only,
      formats.ZERO_SHOT_CHAIN_OF_THOUGHT: zero_shot_chain_of_thought,
    },
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


def _maths(
  dataset: description.Dataset,
) -> tuple[description.Benchmark, ...]:
  return (dataset.in_distribution, *dataset.out_of_distribution)


for _prefix, _dataset in (("", gsm8k.DATASET), ("mini_", mini.DATASET)):
  registration.add_in_formats(
    f"{_prefix}math_ood_validation", _dataset.out_of_distribution
  )
  for _name in ("math_all_validation", "math_all_test"):
    registration.add_in_formats(f"{_prefix}{_name}", _maths(_dataset))
  registration.add_evaluation(
    f"{_prefix}math_test",
    [
      (one.task(formats.ZERO_SHOT_CHAIN_OF_THOUGHT), 1.0)
      for one in _maths(_dataset)
    ],
  )
for _prompt, _, _ in bbh.PROMPTS:
  registration.add_evaluation(
    f"bbh_{_prompt.removeprefix('in_context_')}",
    [(f"bbh_{task}_{_prompt}_v1", 1.0) for task in benchmarks.BIG_BENCH_HARD],
  )
mini_pretrain()
