"""Describes a dataset file as text: its sets, prompts and mixtures."""

from specialize_jax.cot import answer_rules, formats
from specialize_jax.datasets import files


def text(own: files.DatasetFile) -> str:
  """Returns lines on the sets, the rule, the prompts and the mixtures.

  Args:
    own: the dataset file.
  """
  dataset = own.dataset
  shown = own.train[0].question
  lines = ["Sets, and how many questions they have:"]
  width = max(map(len, own.sizes))
  lines += [f"  {name:<{width}} {size:>8,}" for name, size in own.sizes.items()]
  lines += ["", f"The answer: {_said(dataset.in_distribution.answer)}."]
  if dataset.teacher_prompt is not None:
    asked = dataset.teacher_prompt.replace(formats.QUESTION, shown.question)
    lines += ["", "The teacher is asked:", *_indented(asked)]
  for data_format in dataset.formats:
    prompt = formats.render_question(shown.question, data_format)
    target = formats.render_target(data_format, shown.rationale, shown.answer)
    lines += ["", f"{data_format.name}:", *_indented(prompt)]
    if data_format.in_context:
      number = dataset.num_demonstrations
      plural = "s" if number > 1 else ""
      lines.append(f"  (after {number} solved question{plural})")
    lines += ["  ->", *_indented(target or "(the teacher's sample)")]
  name = dataset.name
  lines += ["", "Mixtures:"]
  mixtures = {
    f"{name}_specialize": "training: the four formats",
    f"{name}_validation": "in and out of distribution",
    f"{name}_out_of_distribution_validation": "for selecting checkpoints",
    f"{name}_test": "in and out of distribution",
    f"{name}_general": "general ability",
  }
  if not dataset.general:
    del mixtures[f"{name}_general"]
  if not any("validation" in o.splits for o in dataset.out_of_distribution):
    del mixtures[f"{name}_out_of_distribution_validation"]
  width = max(map(len, mixtures))
  lines += [f"  {one:<{width}}  {what}" for one, what in mixtures.items()]
  return "\n".join(lines)


def _said(rule: answer_rules.AnswerRule) -> str:
  if rule.kind not in answer_rules.FOUND_KINDS:
    return f"found and compared as {rule.kind!r}"
  what = {
    "regex": f"what {rule.pattern!r} finds",
    "json": _fields(rule),
    "python": f"what {rule.function} returns",
  }[rule.kind]
  return f"{what}, compared as {rule.compare!r}"


def _fields(rule: answer_rules.AnswerRule) -> str:
  if rule.fields:
    return f"the fields {', '.join(map(repr, rule.fields))} of a JSON object"
  return f"the field {rule.field!r} of a JSON object"


def _indented(block: str) -> list[str]:
  return [f"  {line}" for line in block.rstrip("\n").split("\n")]
