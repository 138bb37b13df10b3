"""What T5X's gin files bind, without a run."""

import types

import pytest
import seqio

import tasks.mixtures  # noqa: F401  (registers the tasks)
from specialize_jax import errors
from specialize_jax.data import vocabularies
from specialize_jax.t5x_bridge import runs

MIXTURE = "mini_specialize_v1"


def config(name=MIXTURE):
  return types.SimpleNamespace(mixture_or_task_name=name)


def model(vocabulary, vocab_size=10**6):
  network = types.SimpleNamespace(
    config=types.SimpleNamespace(vocab_size=vocab_size)
  )
  return types.SimpleNamespace(
    input_vocabulary=vocabulary, output_vocabulary=vocabulary, module=network
  )


def test_the_vocabulary_is_the_mixture_s():
  assert runs.vocabulary(MIXTURE) == vocabularies.mini()
  runs.verify_vocabulary(config(), model(vocabularies.mini(), None))


def test_another_vocabulary_is_refused():
  with pytest.raises(errors.UserError, match="leave VOCABULARY out"):
    runs.verify_vocabulary(config(), model(vocabularies.t5()))


def test_an_unknown_mixture_is_named():
  with pytest.raises(
    errors.UserError, match="'mini_nothing' is not registered"
  ):
    runs.vocabulary("mini_nothing")


def test_random_parameters_and_other_kinds_are_told_apart(tmp_path):
  assert runs.initial_checkpoint(None) is None
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(errors.UserError, match="specialize convert --to=t5x"):
    runs.initial_checkpoint(str(tmp_path))


def test_tasks_cannot_be_cached_and_say_so_to_seqio():
  # So seqio_cache_tasks skips them, and use_cached=True reads them as they are.
  for task in seqio.get_subtasks(seqio.get_mixture_or_task(MIXTURE)):
    assert not task.supports_caching


def test_the_directory_of_a_run_stands_for_its_newest_checkpoint(tmp_path):
  pytest.importorskip("t5x", reason="T5X is not installed")
  for step in (7, 30):
    place = tmp_path / f"checkpoint_{step}"
    place.mkdir()
    (place / "checkpoint").write_bytes(b"")
  restored = runs.initial_checkpoint(str(tmp_path))
  assert restored.path == str(tmp_path / "checkpoint_30")
