"""A story's plan computes what an independent reader of the story finds."""

import random
import re

from specialize_jax.mini import lexicon, stories

GAIN = re.compile(r"(?:buys|finds|gets|wins) (\d+) (?:bags with (\d+))?")
LOSS = re.compile(r"(?:loses|sells|eats|gives) (\d+) ")


def read(question):
  """Works a story out sentence by sentence, from its words alone."""
  *told, asked = re.split(r"(?<=[.]) ", question)
  teller = told[0].split()[0]
  asked_things = re.match(r"How many (?:more )?(\w+)", asked)[1]
  # Two events joined in one sentence are two sentences without the second "he".
  told = [told[0], *(p for one in told[1:] for p in one.split(" and "))]
  has = {}
  for sentence in told:
    words = sentence.rstrip(".").split()
    bags = re.match(r"\w+ has (\d+) bags with (\d+)", sentence)
    compared = re.match(
      r"(\w+) has (?:(\d+) (times|more|fewer)|(half)) .* (\w+)\.", sentence
    )
    if bags:
      has[words[0]] = int(bags[1]) * int(bags[2])
    elif compared:
      who, number, kind, half, base = compared.groups()
      has[who] = {
        "times": lambda a, b: a * b,
        "more": lambda a, b: a + b,
        "fewer": lambda a, b: a - b,
        "half": lambda a, b: a / 2,
      }[kind or half](has[base], int(number or 2))
    elif words[0] in lexicon.NAMES:
      has[words[0]] = int(re.search(rf"(\d+) {asked_things}", sentence)[1])
    elif "half" in words:
      has[teller] /= 2
    elif gained := GAIN.search(sentence):
      has[teller] += int(gained[1]) * int(gained[2] or 1)
    else:
      has[teller] -= int(LOSS.search(sentence)[1])
  if fewer := re.search(r"more \w+ than (\w+)", asked):
    return has[teller] - int(re.search(rf"(\d+) {fewer[1]}", told[0])[1])
  if "they" in asked:
    return sum(has.values())
  return has[next(word for word in asked.split() if word in has)]


def test_a_plan_computes_the_storys_answer():
  rng = random.Random(0)
  for _ in range(2000):
    problem = stories.draw(rng, (0.2, 0.3, 0.3, 0.2))
    assert read(problem.question) == int(problem.answer), problem.question


def test_he_and_she_are_never_two_people():
  rng = random.Random(1)
  for _ in range(500):
    question = stories.draw(rng, (0.2, 0.3, 0.3, 0.2)).question
    named = [name for name in lexicon.NAMES if name in question]
    pronoun = lexicon.PRONOUNS[question.split()[0]]
    assert sum(lexicon.PRONOUNS[name] == pronoun for name in named) == 1
