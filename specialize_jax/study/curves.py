"""Statistics of a metric over the steps of a run."""

import math
from collections.abc import Mapping


def early_share(curve: Mapping[int, float]) -> float:
  """Returns the share of a curve's fall that its first interval has.

  Example: 0.75 for 0.8 at step 0, 0.2 at step 100 and 0.0 at step 200. NaN if
  the curve does not fall.
  """
  values = [curve[step] for step in sorted(curve)]
  if len(values) < 2 or values[0] <= min(values[1:]):
    return math.nan
  return (values[0] - values[1]) / (values[0] - min(values[1:]))
