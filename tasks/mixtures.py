"""The mixtures used in runs; importing this module registers every task.

  gsm8k_specialize_v1              training: four formats of teacher data
  math_ood_validation_v1           for selecting checkpoints
  math_all_validation_v1           the same and GSM8K, to compare the rules
  math_all_test_v1, math_test_v1   GSM8K and the three others
  bbh_chain_of_thought_v1, bbh_answer_only_v1,
  bbh_answer_only_paper_code_v1    general ability
  mini_pretrain_v1                 training: the mini world's general ability
  mini_specialize_v1, mini_math_ood_validation_v1,
  mini_math_all_validation_v1, mini_math_all_test_v1, mini_math_test_v1,
  mini_general_v1                  the same for the mini world

Every dataset also has the mixtures NAME_specialize, NAME_validation, NAME_test,
NAME_out_of_distribution_validation and NAME_general (see
`specialize_jax.datasets.registration`); here NAME is `gsm8k` or `mini`.

As in the paper, mathematics is zero-shot with chain of thought, and
BIG-Bench-Hard is in-context. For another format, insert its name before the
version: math_all_test_in_context_answer_only_v1, bbh_zero_shot_answer_only_v1.
The name of an evaluation mixture without a version, `math_ood_validation`,
refers to the newest one.

The evaluation determines the split of a mixture; a mixture named after a split
is evaluated on that split only.

Mixing rates are arguments of the functions below, which gin can bind and call
instead of a mixture's name:

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
"""The built-in datasets by name; importing a task's file registers it."""

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
  """Registers a mixture of the four formats of a dataset's teacher data.

  By default a format's rate is its number of examples, as in the paper: one per
  question for answer-only formats, one per correct sample for chain-of-thought
  formats (about 7,100 and 207,619 there).

  Args:
    name: The mixture's name.
    dataset: The dataset: `gsm8k`, `mini_gsm`, or the name of your own.
    in_context_answer_only: The rate of this format, a number or a function of
      the task; 0 excludes the format.
    in_context_chain_of_thought: The rate of this format, likewise.
    zero_shot_answer_only: The rate of this format, likewise.
    zero_shot_chain_of_thought: The rate of this format, likewise.

  Returns:
    The mixture's name.
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
  weak_maths_chain_of_thought_rate: float = 0.0,
  weak_maths_in_context_rate: float = 0.0,
  sums_rate: float = 4.0,
  reading_rate: float = 4.0,
  text_rate: float = 2.0,
) -> str:
  """Registers the mixture that pre-trains the mini world's general student.

  Args:
    name: The mixture's name.
    chain_of_thought_rate: The rate of each general task, zero-shot with chain
      of thought.
    answer_only_rate: The rate of each general task, zero-shot and answer-only.
    facts_rate: The rate of calculations without a story.
    weak_maths_rate: The rate of one-step problems with bare answers.
    weak_maths_chain_of_thought_rate: The rate of the same problems, zero-shot
      with chain of thought.
    weak_maths_in_context_rate: The rate of the same problems after
      demonstrations: of each of the two formats.
    sums_rate: The rate of one-step problems that ask for the calculation.
    reading_rate: The rate of listing a story's names and numbers.
    text_rate: The rate of span corruption.

  Returns:
    The mixture's name.
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
      (
        "mini_weak_maths_zero_shot_chain_of_thought_v1",
        weak_maths_chain_of_thought_rate,
      ),
      *(
        (f"mini_weak_maths_in_context_{kind}_v1", weak_maths_in_context_rate)
        for kind in ("answer_only", "chain_of_thought")
      ),
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
