"""The table of distances is right however it grows, and stays small."""

import random

import numpy as np
from rapidfuzz.distance import Levenshtein

from specialize_jax.align import dynamic_program


def strings(rng, count):
  return ["".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(count)]


def test_distances_are_right_as_the_table_grows():
  rng = random.Random(0)
  rows, columns = strings(rng, 700), strings(rng, 500)
  table = dynamic_program.DistanceTable()
  for end in (3, 4, 40, 41, 300, 700):
    rows_LB = np.array(rng.choices(range(end), k=24)).reshape(6, 4)
    columns_TB = np.array(rng.choices(range(min(end, 500)), k=12)).reshape(3, 4)
    found = table.take(rows_LB, columns_TB, rows, columns)
    expected = [
      [
        [
          Levenshtein.distance(rows[rows_LB[i, b]], columns[columns_TB[j, b]])
          for b in range(4)
        ]
        for j in range(3)
      ]
      for i in range(6)
    ]
    assert found.tolist() == expected
  assert not table.is_full


def test_a_table_holds_little_more_than_the_strings_it_met():
  # GSM8K's 17,000 tokens and 7,000 pieces must fit what a table may hold, or
  # it is begun anew over and over.
  rng = random.Random(1)
  rows, columns = strings(rng, 900), strings(rng, 700)
  table = dynamic_program.DistanceTable()
  for end in range(100, 1000, 100):
    rows_LB = np.arange(end)[:, None]
    columns_TB = np.arange(min(end, 700))[:, None]
    table.take(rows_LB, columns_TB, rows, columns)
  assert table._table.size <= 900 * 700 * dynamic_program._GROWTH**2
