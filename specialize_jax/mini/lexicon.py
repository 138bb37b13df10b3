"""The vocabulary of the mini world: names, nouns and verbs."""

PRONOUNS = {
  "Tom": "he",
  "Anna": "she",
  "Ben": "he",
  "Mia": "she",
  "Sam": "he",
  "Lily": "she",
  "Max": "he",
  "Emma": "she",
  "Leo": "he",
  "Nina": "she",
  "Jack": "he",
  "Rosa": "she",
}
NAMES = tuple(PRONOUNS)

FRUITS = ("apples", "pears", "plums", "melons")
SWEETS = ("cakes", "cookies")
TOOLS = ("books", "pens", "cups", "hats", "lamps")
TREASURES = ("balls", "cards", "stamps", "coins", "shells")
ANIMALS = ("cats", "dogs", "goats", "hens", "ducks", "fish")

FOOD = FRUITS + SWEETS
THINGS = FOOD + TOOLS + TREASURES
SORTABLE = THINGS + ANIMALS

GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("loses", "sells", "eats")
"""`eats` is for food only: see `losses_of`."""


def losses_of(things: str) -> tuple[str, ...]:
  """Returns the verbs that decrease the number of some things."""
  return LOSSES if things in FOOD else LOSSES[:-1]


def others_than(name: str) -> tuple[str, ...]:
  """Returns the names with the other pronoun."""
  return tuple(n for n in NAMES if PRONOUNS[n] != PRONOUNS[name])
