"""Reads packed batches of a seqio mixture as NumPy arrays.

Two tasks of one's own, over rows that lie in memory, become a mixture whose
examples share rows. `decoder_segment_ids` tells the examples of a row apart.

  python examples/packed_batch.py
"""

import tempfile

import sentencepiece
import seqio

from specialize_jax import data

QUESTIONS = [f"What is {a} + {b}?" for a in range(4) for b in range(3, 7)]
ANSWERS = [str(a + b) for a in range(4) for b in range(3, 7)]

folder = tempfile.mkdtemp()
sentencepiece.SentencePieceTrainer.train(
  sentence_iterator=iter(QUESTIONS + ANSWERS * 3),
  model_prefix=f"{folder}/pieces",
  vocab_size=40,
  hard_vocab_limit=False,
  pad_id=0,
  eos_id=1,
  unk_id=2,
  bos_id=-1,
  minloglevel=2,
)
data.set_data_dir(folder)
vocabulary = data.LocatedSentencePieceVocabulary("pieces.model")

for name, text in (
  ("answer", "The answer is {answer}."),
  ("sum", "{question} It is {answer}."),
):
  rows = {
    "question_id": [f"{name}/{i}" for i in range(len(QUESTIONS))],
    "inputs": QUESTIONS,
    "targets": [
      text.format(question=question, answer=answer)
      for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ],
  }
  seqio.TaskRegistry.add(
    f"example_{name}",
    **data.pretraining(
      data.TableSource(
        lambda split, rows=rows: rows, splits=["train"], description=name
      ),
      vocabulary,
      to_text=[data.tokenize],
    ),
  )
seqio.MixtureRegistry.add(
  "example_mixture", ["example_answer", "example_sum"], default_rate=1.0
)

batches = data.TrainIterator(
  "example_mixture",
  task_feature_lengths={"inputs": 64, "targets": 64},
  batch_size=2,
  seed=0,
)
batch = next(batches)
for name, array in sorted(batch.items()):
  print(f"{name:28} {array.dtype!s:8} {array.shape}")
print("examples a row:", batch["decoder_segment_ids"].max(axis=1).tolist())
batches.close()
