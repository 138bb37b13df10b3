"""Maps a teacher's top-k distributions onto a student's vocabulary.

A teacher's log-probabilities are over its own tokens, and the student has a
different tokenizer. Four modes define the target of each student position:

  paper       the teacher's distribution where an edit-distance dynamic program
              matches one student token to one teacher token, else one-hot
  whitespace  the same, but tokens match if their non-space characters are equal
  chunk       as whitespace, and elsewhere the likelihood of the shared chunk
  marginal    the student's next-token distribution, marginalized over the
              teacher's sampled text and its alternatives

A student is a SentencePiece model (`SentencePieceStudent`: T5), a fast
tokenizer of Hugging Face (`HuggingFaceStudent`: Llama, Qwen, GPT-2, BERT), or
anything with the methods of `Student`. Teacher tokens are strings, ids
(`from_ids`, with a `Tiktoken` file or an adapter around the teacher's
tokenizer), or a server's response (`from_response`).

Example:
  >>> import io, sentencepiece
  >>> from specialize_jax import align
  >>> model = io.BytesIO()  # or SentencePieceStudent.from_file("spiece.model")
  >>> sentencepiece.SentencePieceTrainer.train(
  ...   sentence_iterator=iter(["Ann has 12 apples", "Bob had 3"] * 9),
  ...   model_writer=model,
  ...   vocab_size=40,
  ...   hard_vocab_limit=False,
  ...   minloglevel=2,
  ... )
  >>> student = align.SentencePieceStudent(model.getvalue())
  >>> aligner = align.Aligner(student, mode="marginal")
  >>> targets, mask, coverage = aligner(
  ...   ["Ann", " has"],
  ...   [{"Ann": -0.7, "Bob": -1.4}, {" has": -0.3, " had": -1.6}],
  ... )
  >>> targets.top_ids.shape == targets.top_probs.shape
  True
  >>> mask.all(), coverage.positions == len(targets.token_ids)
  (np.True_, True)

The result is what `specialize_jax.losses` expects: ids and probabilities of
each position's candidates. Groups partition both token sequences in order; the
probabilities of a target never sum to more than 1; a student with the teacher's
own tokenizer receives exactly the teacher's distributions; and positions of
characters that the student cannot represent are masked and counted.
"""

from specialize_jax.align.aligner import BATCH_SIZE as BATCH_SIZE
from specialize_jax.align.aligner import MODES as MODES
from specialize_jax.align.aligner import NOT_UNICODE as NOT_UNICODE
from specialize_jax.align.aligner import Aligner as Aligner
from specialize_jax.align.aligner import Alignment as Alignment
from specialize_jax.align.aligner import Targets as Targets
from specialize_jax.align.aligner import check_mode as check_mode
from specialize_jax.align.coverage import Coverage as Coverage
from specialize_jax.align.hugging_face import (
  HuggingFaceStudent as HuggingFaceStudent,
)
from specialize_jax.align.student import (
  SentencePieceStudent as SentencePieceStudent,
)
from specialize_jax.align.student import Student as Student
from specialize_jax.align.targets import TeacherToken as TeacherToken
from specialize_jax.align.teachers import Tiktoken as Tiktoken
from specialize_jax.align.teachers import from_ids as from_ids
from specialize_jax.align.teachers import from_response as from_response
from specialize_jax.align.teachers import from_strings as from_strings
