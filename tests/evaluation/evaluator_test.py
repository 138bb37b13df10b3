"""Evaluation decodes, grades and stores predictions, compiling once."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import linen as nn

from specialize_jax import errors
from specialize_jax.decoding import loop, strategies
from specialize_jax.evaluation import evaluator, metrics
from specialize_jax.files import reading
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

VOCABULARY = seqio.ByteVocabulary()
LENGTHS = {"inputs": 64, "targets": 16}
NEW_TOKENS = 6
CONFIG = t5_config.T5Config(
  vocab_size=VOCABULARY.vocab_size,
  embed_dim=16,
  mlp_dim=24,
  num_heads=2,
  head_dim=8,
  num_encoder_layers=1,
  num_decoder_layers=1,
  mlp_activations=("gelu", "linear"),
  tied_head=False,
  dtype="float32",
)
QUESTIONS = [f"Q: {'why ' * (i % 5 + 1)}{i}?" for i in range(7)]


def _add_task(
  name,
  answers,
  *,
  metric_fns=(metrics.exact_accuracy,),
  postprocess_fn=metrics.keep_answer,
  copy_pretokenized=True,
):
  """Registers a task of the first questions, one for each answer."""
  answers = list(answers)

  def dataset(split, shuffle_files=False, seed=None):
    rows = {
      "question_id": [f"{name}/{split}/{i}" for i in range(len(answers))],
      "inputs": QUESTIONS[: len(answers)],
      "targets": [f"The answer is {a}" for a in answers],
      "answer": list(answers),
    }
    return tf.data.Dataset.from_tensor_slices(
      {key: tf.constant(column, tf.string) for key, column in rows.items()}
    )

  feature = seqio.Feature(VOCABULARY, add_eos=True)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=("validation",)),
    preprocessors=[
      functools.partial(
        seqio.preprocessors.tokenize, copy_pretokenized=copy_pretokenized
      ),
      seqio.preprocessors.append_eos,
    ],
    output_features={"inputs": feature, "targets": feature},
    postprocess_fn=postprocess_fn,
    metric_fns=list(metric_fns),
  )


@pytest.fixture
def registry():
  """Forgets what a test registers."""
  tasks, mixtures = (
    set(seqio.TaskRegistry.names()),
    set(seqio.MixtureRegistry.names()),
  )
  yield
  for name in set(seqio.MixtureRegistry.names()) - mixtures:
    seqio.MixtureRegistry.remove(name)
  for name in set(seqio.TaskRegistry.names()) - tasks:
    seqio.TaskRegistry.remove(name)


@pytest.fixture(scope="module")
def model():
  return network.EncoderDecoder(CONFIG)


@pytest.fixture(scope="module")
def params(model):
  tokens = jnp.ones([1, 4], jnp.int32)
  init = jax.jit(functools.partial(model.init, deterministic=True))
  boxed = init(jax.random.key(0), tokens, tokens)
  params = nn.meta.unbox(boxed["params"])
  # Spread out, so that different questions get different answers.
  return jax.tree.map(lambda x: 3.0 * x, params)


def _say(model, params, question):
  """Decodes one question on its own."""
  tokens = [*VOCABULARY.encode(question), 1]
  inputs = np.zeros([1, LENGTHS["inputs"]], np.int32)
  inputs[0, : len(tokens)] = tokens
  output = loop.decode(
    model,
    params,
    inputs,
    max_new_tokens=NEW_TOKENS,
    strategy=strategies.Greedy(),
  )
  return VOCABULARY.decode([int(i) for i in output.tokens[0]])


def _make(name, model, **changes):
  arguments = {
    "model": model,
    "task_feature_lengths": LENGTHS,
    "batch_size": 4,
    "max_new_tokens": NEW_TOKENS,
  }
  return evaluator.Evaluator(name, **(arguments | changes))


def test_it_grades_and_stores_the_predictions(
  registry, model, params, tmp_path
):
  said = [_say(model, params, question) for question in QUESTIONS]
  assert len(set(said)) > 1, "the test's model says the same to everything"
  right = [i for i in range(7) if i % 3 and answers_alike(said[i])]
  answers = [said[i] if i in right else "never" for i in range(7)]
  _add_task("said", answers)
  evaluate = _make("said", model)
  values = evaluate(params, 30, output_dir=tmp_path)
  assert values["said/n"] == 7
  assert values["said/accuracy"] == pytest.approx(len(right) / 7)
  assert values["said/low"] < values["said/accuracy"] < values["said/high"]
  rows = reading.read_rows(tmp_path / "30" / "said.jsonl")
  assert [row["prediction"] for row in rows] == said
  assert [row["prompt"] for row in rows] == QUESTIONS
  assert [row["target"] for row in rows] == answers
  assert [i for i in range(7) if rows[i]["correct"]] == right
  assert rows[3]["question_id"] == "said/validation/3"
  assert rows[0]["verdicts"].keys() == {"fixed", "paper_code"}


def answers_alike(text):
  """Whether a text, taken as its own answer, is graded right."""
  return metrics.exact_accuracy.grade(text, text).correct


def test_a_second_call_and_a_second_task_compile_nothing(
  registry, model, params, tmp_path
):
  _add_task("first", ["1"] * 7)
  _add_task("second", ["1"] * 5, metric_fns=[metrics.number_accuracy])
  seqio.MixtureRegistry.add("both", ["first", "second"], default_rate=1.0)
  evaluate = _make("both", model)
  assert evaluate.task_names == ["first", "second"]
  values = evaluate(params, 1)
  assert values["first/n"] == 7
  assert values["second/n"] == 5
  compiled = loop._start._cache_size(), loop._resume._cache_size()
  assert evaluate(params, 2, output_dir=tmp_path) == values
  # And a call writes to the directory it is given, or not at all.
  assert [path.name for path in tmp_path.iterdir()] == ["2"]
  assert (loop._start._cache_size(), loop._resume._cache_size()) == compiled


def test_outputs_that_end_early_and_late_are_graded_together(
  registry, model, params, tmp_path
):
  head_DV = params["decoder"]["logits_dense"]["kernel"]
  ending = {
    **params,
    "decoder": {
      **params["decoder"],
      "logits_dense": {"kernel": head_DV.at[:, 1].multiply(2.0)},
    },
  }
  said = [_say(model, ending, question) for question in QUESTIONS]
  assert len({len(text) for text in said}) > 1, "all outputs are as long"
  _add_task("uneven", ["1"] * 7)
  _make("uneven", model)(ending, 1, output_dir=tmp_path)
  rows = reading.read_rows(tmp_path / "1" / "uneven.jsonl")
  assert [row["prediction"] for row in rows] == said


def test_prompts_that_are_truncated_are_counted_once(
  registry, model, params, capsys
):
  _add_task("evaluator_long", "1234567")
  lengths = [len(VOCABULARY.encode(question)) + 1 for question in QUESTIONS]
  limit = sorted(lengths)[3]
  number = sum(length > limit for length in lengths)
  assert 0 < number < 7
  evaluate = _make(
    "evaluator_long", model, task_feature_lengths={**LENGTHS, "inputs": limit}
  )
  evaluate(params, 1)
  line = f"evaluator_long: {number} of 7 prompts are truncated, since they are"
  assert line in capsys.readouterr().err
  evaluate(params, 2)
  assert "truncated" not in capsys.readouterr().err
  _make("evaluator_long", model)(params, 1)
  assert "truncated" not in capsys.readouterr().err


def test_num_examples_takes_the_first_ones(registry, model, params):
  _add_task("some", ["1"] * 7)
  assert _make("some", model, num_examples=2)(params, 0)["some/n"] == 2


def test_a_mixture_called_after_a_split_is_evaluated_on_it(
  registry, model, params
):
  _add_task("called", ["1"] * 3)
  seqio.MixtureRegistry.add("all_validation_v1", ["called"], default_rate=1.0)
  values = _make("all_validation_v1", model, split=None)(params, 0)
  assert values["called/n"] == 3
  with pytest.raises(errors.UserError, match="for choosing a checkpoint"):
    _make("all_validation_v1", model, split="test")
  with pytest.raises(errors.UserError, match="no split 'test'"):
    _make("called", model, split=None)


def test_sharded_parameters_give_the_same_predictions(
  registry, model, params, tmp_path
):
  _add_task("sharded", ["1"] * 7)
  evaluate = functools.partial(_make("sharded", model), output_dir=tmp_path)
  evaluate(params, 1)
  mesh = jax.make_mesh(
    (2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  evaluate(jax.device_put(params, everywhere), 2)
  first, second = (
    reading.read_rows(tmp_path / step / "sharded.jsonl") for step in "12"
  )
  assert first == second


def test_decoded_examples_are_not_decoded_again(
  registry, model, params, tmp_path
):
  _add_task("kept", list("1234567"))
  evaluate = functools.partial(_make("kept", model), output_dir=tmp_path)
  unbroken = evaluate(params, 1, checkpoint="a")
  outputs = tmp_path / "1" / "kept.outputs.jsonl"
  rows = reading.read_rows(outputs)
  first = reading.read_rows(tmp_path / "1" / "kept.jsonl")
  assert len(rows) == 7
  # As a kill leaves it, and with an answer that the model does not give.
  mine = [VOCABULARY.encode("mine")[0], 1]
  rows[2]["output_ids"] = mine
  text = "".join(json.dumps(row) + "\n" for row in rows[:4])
  outputs.write_text(text + '{"output_i')
  progress = outputs.with_name(outputs.name + ".progress")
  made_of, *_ = progress.read_text().splitlines()
  checksum = {"rows": 4, "crc32": zlib.crc32(text.encode())}
  progress.write_text(f"{made_of}\n{json.dumps(checksum)}\n")
  assert evaluate(params, 1, checkpoint="a")["kept/n"] == unbroken["kept/n"]
  second = reading.read_rows(tmp_path / "1" / "kept.jsonl")
  assert second[2]["prediction"] == VOCABULARY.decode(mine)
  assert second[:2] + second[3:] == first[:2] + first[3:]
  assert len(reading.read_rows(outputs)) == 7
  # Rows in other places are of other inputs.
  outputs.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
  assert evaluate(params, 1, checkpoint="a") == unbroken
  # Another checkpoint is asked everything.
  assert evaluate(params, 1, checkpoint="b") == unbroken
  assert reading.read_rows(tmp_path / "1" / "kept.jsonl") == first


def test_prompts_without_their_text_may_be_truncated(
  registry, model, params, capsys
):
  _add_task("evaluator_textless", "1234567", copy_pretokenized=False)
  lengths = [len(VOCABULARY.encode(question)) + 1 for question in QUESTIONS]
  limit = sorted(lengths)[3]
  number = sum(length > limit for length in lengths)
  evaluate = _make(
    "evaluator_textless",
    model,
    task_feature_lengths={**LENGTHS, "inputs": limit},
  )
  evaluate(params, 1)
  line = f"evaluator_textless: {number} of 7 prompts may be truncated, since"
  assert line in capsys.readouterr().err


def test_targets_of_any_type_are_stored(registry, model, params, tmp_path):
  targets = [
    np.int64(3),
    b"bytes",
    {"idx": np.array([1, 2]), b"b": {2, 1}},
    float("nan"),
    ("a", None),
    1 + 2j,
    True,
  ]

  def number(targets, predictions):
    return {"number": len(targets)}

  _add_task(
    "evaluator_any",
    map(str, range(7)),
    metric_fns=[number],
    postprocess_fn=lambda text, example, is_target: targets[
      int(example["answer"])
    ],
  )
  values = _make("evaluator_any", model)(params, 1, output_dir=tmp_path)
  assert values == {"evaluator_any/number": 7}
  rows = reading.read_rows(tmp_path / "1" / "evaluator_any.jsonl")
  for name in ("target", "prediction"):
    assert [row[name] for row in rows] == [
      3,
      "bytes",
      {"idx": [1, 2], "b": [1, 2]},
      None,
      ["a", None],
      "(1+2j)",
      True,
    ]


def test_a_metric_of_scores_is_refused_by_name(registry, model):
  def rank(targets, scores):
    return {"rank": 0.0}

  def with_aux(targets, predictions, aux_values):
    return {"aux": 0.0}

  for fn in (rank, with_aux):
    name = f"evaluator_{fn.__name__}"
    _add_task(name, "1", metric_fns=[fn])
    with pytest.raises(errors.UserError, match=f"of scores, {fn.__name__}:"):
      _make(name, model)


def test_an_invalid_task_is_named(registry, model):
  _add_task("gsm_v1", ["1"])
  _add_task("nothing_v1", [])
  _add_task("no_metric_v1", ["1"], metric_fns=[])
  for name, changes, message in (
    ("gsm_v2", {}, "'gsm_v2' is not registered: .* did you mean gsm_v1"),
    ("gsm_v1", {"split": "test"}, "no split 'test': expected one of valid"),
    ("nothing_v1", {}, "'nothing_v1' is empty"),
    ("no_metric_v1", {}, "'no_metric_v1' has no metric"),
  ):
    with pytest.raises(errors.UserError, match=message):
      _make(name, model, **changes)
