"""Numbers of flags are in their range, or the flag is named."""

import argparse
import doctest

import pytest

from specialize_jax.cli import flag_types, generate


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(flag_types)
  assert outcome.attempted > 0
  assert outcome.failed == 0


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "", "1e3", "many"])
def test_what_counts_nothing_is_no_whole_number(text):
  with pytest.raises(argparse.ArgumentTypeError, match="of at least 1"):
    flag_types.whole(1)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "warm"])
def test_what_is_not_finite_or_in_range_is_no_number(text):
  with pytest.raises(argparse.ArgumentTypeError, match="finite number above 0"):
    flag_types.real(above=0)(text)


@pytest.mark.parametrize(
  "flag",
  ["--num_samples=-1", "--temperature=nan", "--seed=-1", "--max_new_tokens=0"]
  + ["--batch_size=0", "--top_k=0", "--cpu_devices=0", "--top_p=inf"]
  + [f"--seed={2**64}", "--num_beams=two", "stray"],
)
def test_a_flag_out_of_its_range_is_named_with_status_2(flag, capsys):
  needed = ["--checkpoint=c", "--inputs=i", "--outputs=o"]
  with pytest.raises(SystemExit) as end:
    generate.build_parser().parse_args([*needed, flag])
  assert end.value.code == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert flag.partition("=")[0] in error
