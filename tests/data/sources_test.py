import collections
import os

import pytest
import sentencepiece
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import questions, sources, vocabularies


def table(values=range(20), salt="", splits=("train",)):
  return sources.TableSource(
    lambda split: {"value": list(values)},
    splits=splits,
    description="a table",
    salt=salt,
  )


def values(dataset):
  return [int(one["value"]) for one in dataset]


def test_a_table_gives_its_rows_in_order():
  source = table()
  assert values(source.get_dataset(shuffle=False)) == list(range(20))
  assert source.list_shards("train") == ["train"]
  assert source.num_input_examples("train") == 20


def test_only_a_table_that_knows_of_shares_is_divided():
  class Named(sources.TableSource):
    """A table with a name."""

  class Reversed(sources.TableSource):
    """A table whose datasets have all rows, whatever the share."""

    def get_dataset(self, split="train", **options):
      return tf.data.Dataset.range(20).map(lambda row: {"value": 19 - row})

  made = [
    kind(lambda split: {"value": range(20)}, splits=["train"], description="")
    for kind in (sources.TableSource, Named, Reversed)
  ]
  assert [sources.is_divisible(one) for one in made] == [True, True, False]


def test_a_shuffled_pass_is_a_permutation_by_the_seed():
  first = values(table().get_dataset(seed=1))
  assert sorted(first) == list(range(20)) != first
  assert values(table().get_dataset(seed=1)) == first
  assert values(table().get_dataset(seed=2)) != first
  assert values(table(salt="other").get_dataset(seed=1)) != first


def test_without_a_seed_every_dataset_differs():
  assert values(table().get_dataset()) != values(table().get_dataset())


def test_all_orders_are_equally_likely():
  with sources.passes(600):
    rows = sources.row_numbers(3, shuffle=True, seed=0)
  orders = collections.Counter(map(tuple, rows.batch(3).as_numpy_iterator()))
  # 100 each are expected; 5 standard deviations are 46.
  assert len(orders) == 6
  assert all(54 < count < 146 for count in orders.values())


def test_passes_follow_one_another_each_in_its_own_order():
  with sources.passes(3):
    dataset = table(range(10)).get_dataset(seed=0)
  seen = values(dataset)
  chunks = [tuple(seen[i : i + 10]) for i in (0, 10, 20)]
  assert all(sorted(chunk) == list(range(10)) for chunk in chunks)
  assert len(set(chunks)) == 3
  with sources.passes(None):
    endless = table(range(10)).get_dataset(seed=0)
  assert values(endless.take(45))[:30] == seen
  assert len(values(table(range(10)).get_dataset(seed=0))) == 10


@pytest.mark.parametrize("stop", range(0, 36, 5))
def test_an_iterator_resumes_wherever_a_pass_stands(tmp_path, stop):
  def make():
    with sources.passes(None):
      dataset = table(range(7)).get_dataset(seed=0)
    return dataset.map(lambda row: row["value"], num_parallel_calls=4)

  whole = [int(x) for x in make().take(80)]
  stopped = iter(make())
  for _ in range(stop):
    next(stopped)
  path = tf.train.Checkpoint(it=stopped).write(str(tmp_path / "it"))
  resumed = iter(make())
  tf.train.Checkpoint(it=resumed).read(path).assert_consumed()
  assert [int(next(resumed)) for _ in range(80 - stop)] == whole[stop:]


def test_shards_part_the_rows():
  shards = [
    values(
      table().get_dataset(
        seed=3, shard_info=seqio.ShardInfo(index=i, num_shards=3)
      )
    )
    for i in range(3)
  ]
  assert sorted(sum(shards, [])) == list(range(20))


def test_an_unknown_split_and_an_empty_table_are_errors():
  with pytest.raises(errors.UserError, match="split='dev'.*'train'"):
    table().get_dataset("dev")
  with pytest.raises(errors.UserError, match="a table, split 'train', is em"):
    table([]).get_dataset()


def test_the_data_directory_is_chosen_then_from_the_environment(
  monkeypatch, tmp_path
):
  monkeypatch.setenv(sources.ENVIRONMENT_VARIABLE, "/from/environment")
  sources.set_data_dir(tmp_path)
  assert sources.data_dir() == str(tmp_path)
  sources.set_data_dir(None)
  assert sources.data_dir() == "/from/environment"
  monkeypatch.delenv(sources.ENVIRONMENT_VARIABLE)
  with pytest.raises(errors.UserError, match="SPECIALIZE_DATA"):
    sources.data_dir()


def test_columns_of_different_lengths_are_refused():
  source = sources.TableSource(
    lambda split: {"inputs": ["a", "b"], "targets": ["c"]},
    splits=("train",),
    description="my table",
  )
  with pytest.raises(errors.UserError) as caught:
    source.get_dataset("train")
  assert str(caught.value) == (
    "my table, split 'train', has columns of different lengths: {'inputs': 2,"
    " 'targets': 1}"
  )


def test_without_a_data_directory_no_file_is_there(monkeypatch, tmp_path):
  (tmp_path / "gsm8k").mkdir()
  sources.set_data_dir(tmp_path)
  assert sources.exists("gsm8k")
  sources.set_data_dir(None)
  monkeypatch.delenv(sources.ENVIRONMENT_VARIABLE, raising=False)
  assert not sources.exists("gsm8k")


def test_a_vocabulary_opens_its_file_only_when_used(world):
  vocabulary = vocabularies.LocatedSentencePieceVocabulary(
    "mini/student.model", extra_ids=4
  )
  sources.set_data_dir("/nowhere")
  assert vocabulary == vocabularies.LocatedSentencePieceVocabulary(
    "mini/student.model", extra_ids=4
  )
  with pytest.raises(errors.UserError, match="/nowhere/mini/student.model"):
    vocabulary.encode("a")
  sources.set_data_dir(world)
  plain = sentencepiece.SentencePieceProcessor(
    model_file=os.path.join(world, "mini/student.model")
  )
  text = "Ann has 3 apples."
  assert list(vocabulary.encode(text)) == plain.encode(text)
  assert vocabulary.vocab_size == plain.vocab_size() + 4
  assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == (
    plain.encode(text)
  )
  assert vocabulary.eos_id == 1
  assert len(vocabulary.fingerprint) == 64


def test_vocabularies_of_other_files_differ():
  assert vocabularies.mini() == vocabularies.mini()
  assert vocabularies.mini() != vocabularies.t5()


def test_rows_that_name_no_zero_shot_format_are_an_error(tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text(
    '{"question_id": "a", "question": "q", "rationale": "", "answer": "1",'
    ' "format": "in_context_answer_only"}\n'
  )
  with pytest.raises(errors.UserError, match="row 1: format 'in_context"):
    questions.read_formatted(str(file))
