"""What T5X's gin files bind, without a run."""

import types

import pytest
import seqio
import tensorflow as tf

import tasks.mixtures  # noqa: F401  (registers the tasks)
from specialize_jax import errors
from specialize_jax.data import sources, vocabularies
from specialize_jax.t5x_bridge import features, runs

MIXTURE = "mini_specialize_v1"


def config(name=MIXTURE, use_cached=False):
  return types.SimpleNamespace(mixture_or_task_name=name, use_cached=use_cached)


def model(vocabulary, vocab_size=10**6):
  network = types.SimpleNamespace(
    config=types.SimpleNamespace(vocab_size=vocab_size)
  )
  return types.SimpleNamespace(
    input_vocabulary=vocabulary, output_vocabulary=vocabulary, module=network
  )


def test_the_vocabulary_is_the_mixture_s():
  assert runs.vocabulary(MIXTURE) == vocabularies.mini()
  runs.verify_dataset(config(), model(vocabularies.mini(), None))


def test_another_vocabulary_is_refused():
  with pytest.raises(errors.UserError, match="leave VOCABULARY out"):
    runs.verify_dataset(config(), model(vocabularies.t5()))


def test_an_unknown_mixture_is_named():
  with pytest.raises(
    errors.UserError, match="'mini_nothing' is not registered"
  ):
    runs.vocabulary("mini_nothing")


def restore(path, mode="specific"):
  return types.SimpleNamespace(path=path, mode=mode, strict=False)


def test_random_parameters_and_other_kinds_are_told_apart(tmp_path):
  assert runs.initial_checkpoint(restore(None)) is None
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="specialize convert --to=t5x"):
    runs.initial_checkpoint(restore(str(tmp_path)))


def numbers_task(num_rows):
  """A task whose examples are the tokens 2, 3, ... with EOS."""
  tokens = seqio.PassThroughVocabulary(size=384, eos_id=1)
  feature = seqio.Feature(tokens, add_eos=True)

  def to_tokens(dataset):
    def tokens_of(row):
      ids = tf.stack([tf.cast(row["number"], tf.int32) + 2, 1])
      return {"inputs": ids, "targets": ids}

    return dataset.map(tokens_of)

  return seqio.Task(
    "numbers",
    source=sources.TableSource(
      lambda split: {"number": range(num_rows)},
      splits=["train"],
      description="numbers",
    ),
    output_features={"inputs": feature, "targets": feature},
    preprocessors=[to_tokens],
    shuffle_buffer_size=None,
  )


def test_every_epoch_has_all_examples_in_an_order_of_its_own():
  dataset_config = types.SimpleNamespace(
    mixture_or_task_name=numbers_task(8),
    task_feature_lengths={"inputs": 2, "targets": 2},
    split="train",
    batch_size=8,
    shuffle=True,
    seed=0,
    use_cached=False,
    pack=False,
    use_custom_packing_ops=False,
    module=None,
    trim_output_features=False,
  )

  def epochs():
    batches = runs.get_dataset(dataset_config, 0, 1, features.FeatureConverter)
    return [
      tuple(batch["encoder_input_tokens"][:, 0])
      for batch in batches.take(4).as_numpy_iterator()
    ]

  orders = epochs()
  assert len(set(orders)) == 4
  assert all(sorted(order) == list(range(2, 10)) for order in orders)
  assert epochs() == orders  # of the same seed
  dataset_config.seed = None
  assert len(epochs()) == 4


def test_tasks_without_a_cache_are_named_with_the_way_to_it():
  with pytest.raises(errors.UserError) as raised:
    runs.verify_dataset(
      config(use_cached=True), model(vocabularies.mini(), None)
    )
  # Those of zero-shot formats; in-context formats draw new demonstrations.
  cached = [
    task.name
    for task in seqio.get_subtasks(seqio.get_mixture_or_task(MIXTURE))
    if task.supports_caching
  ]
  assert len(cached) == 2
  assert all("zero_shot" in name for name in cached)
  assert f"--tasks={','.join(cached)}" in str(raised.value)


@pytest.mark.parametrize("mode", ["specific", "latest"])
def test_the_directory_of_a_run_stands_for_its_newest_checkpoint(
  tmp_path, mode, monkeypatch
):
  for step in (7, 30):
    place = tmp_path / "run" / f"checkpoint_{step}"
    place.mkdir(parents=True)
    (place / "checkpoint").write_bytes(b"")
  monkeypatch.chdir(tmp_path)
  newest = str(tmp_path / "run" / "checkpoint_30")
  resolved = runs.initial_checkpoint(restore("run/", mode))
  assert (resolved.path, resolved.mode) == (newest, "specific")
  assert not resolved.strict  # what else the user has set
  # t5x.eval looks for the newest itself, or takes all.
  evaluated = runs.checkpoint(restore("run/", mode))
  expected = newest if mode == "specific" else str(tmp_path / "run")
  assert (evaluated.path, evaluated.mode) == (expected, mode)


@pytest.mark.parametrize(
  ("path", "mode"), [("run", "all"), (["run/1", "run/2"], "specific")]
)
def test_a_run_starts_from_one_checkpoint(path, mode):
  with pytest.raises(errors.UserError, match="starts from one checkpoint"):
    runs.initial_checkpoint(restore(path, mode))


def test_a_module_that_does_not_exist_is_named(tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match="MODULE='no.such' cannot be imp"):
    runs.vocabulary(MIXTURE, module="no.such")
  (tmp_path / "half_there.py").write_text("import no_such_package")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ModuleNotFoundError, match="no_such_package"):
    runs.vocabulary(MIXTURE, module="half_there")
