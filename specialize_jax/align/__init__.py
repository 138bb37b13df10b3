"""Lays a teacher's tokens on a student's tokens, and its top 5 on their ids.

A teacher's log-probabilities belong to its own tokens; the student predicts
others. Four modes say what each student position learns from them:

  paper       edit-distance dynamic program, distribution where tokens match
  whitespace  same non-space characters, distribution where tokens match
  chunk       as whitespace, and elsewhere the likelihood of the shared chunk
  marginal    the distribution that the teacher's tree of texts implies

The room may assume that the tokens spell the text, which is checked. It
promises, in every mode, that the groups partition both token sequences in
order, that a target's mass never exceeds 1 (`paper` passes on what the
teacher's rounding gives), and that what the student cannot spell is counted.
"""

from specialize_jax.align.aligner import BATCH_SIZE as BATCH_SIZE
from specialize_jax.align.aligner import MODES as MODES
from specialize_jax.align.aligner import NOT_UNICODE as NOT_UNICODE
from specialize_jax.align.aligner import Aligner as Aligner
from specialize_jax.align.aligner import check_mode as check_mode
