"""The made-up tickets: their words, their queues, and how a teacher reasons.

A ticket says what is wrong with a thing; its queue is two words, the trouble
and the thing: "Where is my package? It was due on Monday." is for `late
parcel`. `make_data.py` writes tickets, `teacher_server.py` answers them.
"""

import random

THINGS = {
  "parcel": ("parcel", "package", "delivery", "shipment"),
  "invoice": ("invoice", "bill", "receipt"),
  "account": ("account", "login", "profile"),
  "phone": ("phone", "handset", "mobile"),
  "ticket": ("train ticket", "boarding pass", "reservation"),
}
TROUBLES = {
  "late": ("was due last {day}", "should have come on {day}",
           "is overdue since {day}"),
  "broken": ("does not work since {day}", "stopped working on {day}",
             "has been damaged"),
  "missing": ("cannot be found anywhere", "has disappeared since {day}",
              "is nowhere to be seen"),
  "wrong": ("is not the one I asked for", "has an error in it",
            "belongs to somebody else"),
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

# How people write, by where they write.
STYLES = {
  "mail": (
    "Dear team, my {thing} {trouble}. Number {number}.",
    "Hello, the {thing} with number {number} {trouble}.",
    "I am writing because my {thing} {trouble}. It is number {number}.",
    "Good morning. The {thing} {number} {trouble}. Please help.",
  ),
  "phone": (
    "Yes hello, so, my {thing}, number {number}, well, it {trouble}.",
    "Hi, I am calling about a {thing}. It {trouble}.",
  ),
  "chat": (
    "hi! {thing} {number} {trouble}",
    "help please, {thing} {trouble}",
  ),
}

# What the teacher says, choice by choice, each with its probability.
OPENINGS = (
  ("The customer writes about the {thing}.", 0.6),
  ("This is about the {thing}.", 0.3),
  ("The {thing} is meant.", 0.1),
)
MIDDLES = (
  ("It {trouble}, so it is {kind}.", 0.7),
  ("Since it {trouble}, the trouble is that it is {kind}.", 0.3),
)
MISTAKE = 0.08  # how often it names another thing, and so another queue
QUEUE = "Queue: {kind} {name}"


def write(style, rng):
  """Returns a ticket and its queue."""
  name = rng.choice(list(THINGS))
  kind = rng.choice(list(TROUBLES))
  trouble = rng.choice(TROUBLES[kind]).format(day=rng.choice(DAYS))
  ticket = rng.choice(STYLES[style]).format(
    thing=rng.choice(THINGS[name]),
    trouble=trouble,
    number=rng.randrange(100, 1000),
  )
  return ticket, f"{kind} {name}"


def read(ticket):
  """Returns what a ticket says: its thing, trouble, and their names."""
  thing, name = next(
    (word, name)
    for name, words in THINGS.items()
    for word in words
    if f" {word} " in f" {ticket} ".replace(",", " ").replace(".", " ")
  )
  trouble, kind = next(
    (said, kind)
    for kind, templates in TROUBLES.items()
    for template in templates
    for day in DAYS
    if (said := template.format(day=day)) in ticket
  )
  return thing, trouble, name, kind


def choices(ticket):
  """Returns the teacher's choices, one after another: texts and weights."""
  thing, trouble, name, kind = read(ticket)
  said = {"thing": thing, "trouble": trouble, "kind": kind}
  others = [other for other in THINGS if other != name]
  return [
    [(text.format(**said), weight) for text, weight in OPENINGS],
    [(text.format(**said), weight) for text, weight in MIDDLES],
    [
      (QUEUE.format(kind=kind, name=name), 1 - MISTAKE),
      *(
        (QUEUE.format(kind=kind, name=other), MISTAKE / len(others))
        for other in others
      ),
    ],
  ]


def rationale(ticket, seed):
  """Returns a right chain of thought for a ticket."""
  rng = random.Random(seed)
  opening, middle, queue = choices(ticket)
  drawn = [
    rng.choices(*zip(*choice, strict=True))[0] for choice in (opening, middle)
  ]
  return " ".join([*drawn, queue[0][0]])
