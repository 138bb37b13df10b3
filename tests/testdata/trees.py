"""Random teacher samples: texts, their tokens, candidates, probabilities."""

import functools
import io
import math

import sentencepiece
from hypothesis import strategies as st

from specialize_jax import align as align_lib
from specialize_jax.align import student, targets

SENTENCES = (
  "Ann has 12 red apples and 3 green ones.",
  "Bob sold 48/2 = 24 clips in May, so he has 72 clips.",
  "She pays $5 and 30 cents for a pen; they cost 8 dollars.",
  "In total there are 12 + 3 = 15 apples.\nThe answer is 15",
)


@functools.cache
def tiny_model():
  """Returns a SentencePiece model of 120 pieces, trained on the spot."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(SENTENCES * 20),
    model_writer=model,
    vocab_size=120,
    model_type="bpe",
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return model.getvalue()


@functools.cache
def tiny_student():
  """Returns a student of 120 pieces."""
  return student.SentencePieceStudent(tiny_model())


# Words that tokenizers know, and characters that they do not: T5 has no "{",
# "~", tab or newline; "\u00bd" it spells with several; emoji take 4 bytes.
_FRAGMENTS = st.sampled_from(
  [" ", "\n", "  ", ".", ",", " 48", "/2", " =", " 24", " clips", "clip", "s"]
  + [" Nat", "alia", "If", " a", "{", " ~", "\u00bd", "\u20ac", " \u00e9t"]
  + ["\u0301", "\U0001f600", "\t", "\u00a0", "\u3000", "\u200b", "12", "3"]
  + ["\ufb01", "\u2026", "\u65e5\u672c", "\u00d7", "ab", "b", " b", "A"]
  + ["48", "+", " +", "24", "\n\n", " \n", "If she", "\x1c", "\x0b"]
)
_WHITE_SPACE = st.sampled_from(
  [b"", b" ", b"\n", b"  ", b"\n\n", b" \n", b"\t", b"\x1c", b"\xc2\xa0"]
)
texts = st.one_of(
  st.lists(_FRAGMENTS, min_size=1, max_size=8).map("".join),
  st.text(min_size=1, max_size=12).filter(
    lambda text: not any("\ud800" <= c <= "\udfff" for c in text)
  ),
  st.sampled_from(SENTENCES),
)


@st.composite
def cuts(draw, text):
  """Cuts a text into tokens: at characters, or at any bytes."""
  spelled = text.encode()
  places = range(1, len(spelled))
  if draw(st.booleans()):
    places = [i for i in places if spelled[i] & 0xC0 != 0x80]
  chosen = sorted(draw(st.sets(st.sampled_from(places)))) if places else []
  bounds = [0, *chosen, len(spelled)]
  return [spelled[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


@st.composite
def teacher_tokens(draw, spellings):
  """Returns each token a probability and up to three candidates."""
  tokens = []
  for spelling in spellings:
    others = draw(
      st.lists(
        st.one_of(
          _FRAGMENTS.map(str.encode),
          st.sampled_from([b"\xe2\x82", b"\xff", spelling]),
          # The same but for white space: around it, or in its place.
          st.sampled_from(
            [b" " + spelling, spelling.strip(), spelling + b"\n"]
          ),
          _WHITE_SPACE,
        ),
        max_size=3,
        unique=True,
      )
    )
    parts = [draw(st.integers(1, 9)) for _ in range(len(others) + 2)]
    probs = [part / sum(parts) for part in parts]  # the last is unseen
    top = [
      (other, math.log(prob))
      for other, prob in zip(others, probs[1:], strict=False)
      if other != spelling
    ]
    place = draw(st.integers(0, len(top)))
    if draw(st.booleans()):
      top.insert(place, (spelling, math.log(probs[0])))
    tokens.append(
      targets.TeacherToken(
        spelling=spelling, log_prob=math.log(probs[0]), top=tuple(top)
      )
    )
  return tokens


@st.composite
def samples(draw):
  """Returns a text and teacher tokens that spell it."""
  text = draw(texts)
  return text, draw(teacher_tokens(draw(cuts(text))))


def plain_tokens(spellings, prob=0.5):
  """Returns tokens of one probability, without candidates."""
  return [
    targets.TeacherToken(spelling=spelling, log_prob=math.log(prob), top=())
    for spelling in spellings
  ]


def token(spelling, prob, **candidates):
  """Returns one token; candidates are written out as keyword arguments."""
  return targets.TeacherToken(
    spelling=spelling.encode(),
    log_prob=math.log(prob),
    top=tuple(
      (text.encode(), math.log(value)) for text, value in candidates.items()
    ),
  )


@functools.cache
def _aligner(tokenizer, mode):
  return align_lib.Aligner(tokenizer, mode=mode)


def align(tokens, text, tokenizer, mode):
  """Aligns one sample, as a batch of one."""
  (result,) = _aligner(tokenizer, mode).align([(tokens, text)]).results()
  return result


def probs_by_id(aligned):
  """Returns the target of each position as probabilities by id."""
  return [
    {
      index: math.exp(log_prob)
      for index, log_prob in zip(ids, log_probs, strict=True)
      if log_prob > -math.inf
    }
    for ids, log_probs in zip(
      aligned.top_ids_TC.tolist(),
      aligned.top_log_probs_TC.tolist(),
      strict=True,
    )
  ]
