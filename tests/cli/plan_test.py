"""`specialize plan` from flags to table, JSON and figure, by the compiler."""

import json
import math

import pytest

from specialize_jax.cli import main

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")

_SMALL = (
  "--model=tiny",
  "--topology=v5e:2x2",
  "--batch_size=8",
  "--input_length=64",
  "--target_length=32",
)


@pytest.fixture
def plan(tmp_path, capsys):
  """Runs `specialize plan`; gives status, output, errors and rows."""

  def run(*argv):
    output = tmp_path / "plan.json"
    status = main.main(["plan", *argv, f"--output={output}"])
    said = capsys.readouterr()
    rows = json.loads(output.read_text()) if output.exists() else None
    return status, said.out, said.err, rows

  return run


def test_a_step_is_planned_in_numbers_that_agree(plan, tmp_path):
  figure = tmp_path / "plan.png"
  gin = tmp_path / "v5e-4.gin"
  status, table, progress, rows = plan(
    *_SMALL,
    "--mesh=fsdp=2,model=2",
    "--train_steps=1000",
    f"--figure={figure}",
    f"--write_topology={gin}",
  )
  assert status == 0
  (row,) = rows
  assert (row["mesh"], row["fits"]) == ("fsdp=2,model=2", True)
  parts = ("parameters_gib", "optimizer_gib", "activations_gib")
  assert row["hbm_gib"] == pytest.approx(sum(row[name] for name in parts))
  assert 0 < row["hbm_gib"] < row["hbm_limit_gib"] == 15.75
  seconds = {
    kind: row[f"{kind}_seconds"]
    for kind in ("compute", "memory", "interconnect")
  }
  assert row["step_seconds"] == max(seconds.values()) > 0
  assert row["bound_by"] == max(seconds, key=seconds.get)
  assert row["interconnect_bytes"] == sum(
    row["interconnect_bytes_by_kind"].values()
  )
  assert 0 < row["mfu"] < 1
  assert row["flops"] > 0 < row["hbm_bytes"]
  assert row["unknown_loops"] == 0
  assert row["examples_per_second"] == pytest.approx(8 / row["step_seconds"])
  assert row["tokens_per_second"] == pytest.approx(
    8 * (64 + 32) / row["step_seconds"]
  )
  assert row["hours"] == pytest.approx(1000 * row["step_seconds"] / 3600)
  assert row["chip_hours"] == pytest.approx(4 * row["hours"])
  assert "compiling train for fsdp=2,model=2" in progress
  assert "fsdp=2,model=2" in table
  assert figure.read_bytes().startswith(b"\x89PNG")
  chosen = gin.read_text()
  assert chosen.endswith(
    "\nDATA_AXIS = 1\nFSDP_AXIS = 2\nMODEL_AXIS = 2\n\n"
    'REMAT_POLICY = "minimal"\n'
  )
  comment = " ".join(chosen.replace("\n#", " ").split())
  assert f"fsdp=2,model=2: at least {row['step_seconds']:.3f} s" in comment
  assert f"Chosen by: specialize plan {' '.join(_SMALL)} --mesh" in comment
  assert str(tmp_path) not in comment


def test_what_does_not_fit_is_a_row_that_says_by_how_much(plan):
  status, table, _, rows = plan(
    "--model=flan_t5_xxl",
    "--topology=v5e:2x2",
    "--optimizer=adamw",
    "--mesh=fsdp=4",
    "--mesh=data=4",
  )
  assert status == 0
  assert [row["mesh"] for row in rows] == ["fsdp=4", "data=4"]
  for row in rows:
    assert not row["fits"]
    assert row["step_seconds"] is None
    over = row["hbm_gib"] - row["hbm_limit_gib"]
    assert over > 0
    assert row["advice"].startswith(f"{over:.2f} GiB over: ")
    assert row["advice"] in " ".join(table.split())
    assert "--optimizer=adafactor" in row["advice"]
  # 11.1 billion parameters and two moments, float32, over 4 chips.
  state = rows[0]["parameters_gib"] + rows[0]["optimizer_gib"]
  assert math.isclose(state, 3 * 11.14e9 * 4 / 4 / 2**30, rel_tol=0.01)
  assert "more fsdp" in rows[1]["advice"]


def test_a_step_too_large_for_its_activations_says_what_makes_them_fewer(plan):
  status, _, _, (row,) = plan(
    "--model=flan_t5_small",
    "--topology=v5e:1x1",
    "--batch_size=512",
    "--input_length=1024",
    "--target_length=512",
    "--remat=minimal",
  )
  assert status == 0
  assert not row["fits"]
  assert row["parameters_gib"] + row["optimizer_gib"] < 2
  *_, ways = row["advice"].partition(": try ")
  assert ways.split(", ") == [
    "--remat=lean",
    "--remat=full",
    "--microbatches=2",
    "a smaller batch (a multiple of 1)",
    "more chips",
  ]


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("--mesh=fsdp=3",), "--mesh=fsdp=3 is for 3 chips, and the topology has"),
    (("--mesh=expert=4",), "'expert=4' is not possible"),
    (("--batch_size=6", "--mesh=fsdp=4"), "--batch_size=6 cannot be cut"),
    (("--topology=v5e:3x3",), "--topology=v5e:3x3 is not a slice of v5e"),
    (("--topology=v9:2x2",), "--topology=v9:2x2 is unknown"),
    (("--model=flan_t5_huge",), "--model=flan_t5_huge is not a file in"),
    (("--figure=plan.gif",), "--figure=plan.gif: expected a name that ends"),
    (("--write_topology=v5e",), "--write_topology=v5e: expected a name that"),
    (
      ("--write_topology=v5e.gin", "--step=decode"),
      "--write_topology chooses the mesh of a train step",
    ),
    (("--batch_size=0",), "expected a whole number of at least 1"),
    (("--gin.T5Config.remat_policy=full",), "give --remat=full"),
    (("--gin.REMAT_POLICY='full'",), "give --remat=full"),
    (("--gin.REMAT_POLICY=all",), "give --remat=one of none, dots, minimal,"),
    (("--gin.T5Config.remat_policy=all",), "T5Config.remat_policy is 'all'"),
    (("--remat=some",), "invalid choice: 'some'"),
    (
      (
        "--mesh=fsdp=4",
        '--gin.config.T5Config.attention="tpu"',
        "--gin.config.T5Config.head_dim=40",
      ),
      "takes heads of a multiple of 16 dimensions, and T5Config.head_dim is 40",
    ),
  ],
)
def test_what_cannot_be_planned_is_one_sentence_and_status_2(
  plan, capsys, argv, message
):
  try:
    status, _, said, rows = plan(*_SMALL, *argv)
  except SystemExit as end:  # argparse's own
    status, said, rows = end.code, capsys.readouterr().err, None
  assert status == 2
  assert message in said
  assert rows is None


def test_a_topology_that_fits_no_mesh_is_not_written(plan, tmp_path):
  gin = tmp_path / "v5e-4.gin"
  status, _, said, rows = plan(
    "--model=flan_t5_xxl",
    "--topology=v5e:2x2",
    "--optimizer=adamw",
    "--mesh=fsdp=4",
    f"--write_topology={gin}",
  )
  assert (status, gin.exists()) == (2, False)
  # What took minutes to compile is kept, and says by how much it does not fit.
  assert [row["fits"] for row in rows] == [False]
  assert "--write_topology: no mesh of v5e:2x2 fits this job" in said


@pytest.mark.slow
def test_all_sensible_meshes_of_both_steps_are_planned(plan):
  status, table, progress, rows = plan(*_SMALL, "--step=both")
  assert status == 0
  steps = [row["step"] for row in rows]
  assert steps == sorted(steps, reverse=True), "train first, then decode"
  train = [row for row in rows if row["step"] == "train"]
  assert {row["mesh"] for row in train} == {
    "fsdp=4",
    "fsdp=2,model=2",
    "data=2,fsdp=2",
    "data=4",
  }
  times = [row["step_seconds"] for row in train]
  assert times == sorted(times), "the best mesh comes first"
  assert f"{len(rows)} of {len(rows)}: compiling decode" in progress
  assert "decode" in table
