"""Who exchanges with whom, in every notation, and what each one sends."""

import pytest

from specialize_jax.tpu import collectives, hlo_text

_TEXT = """HloModule m

ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128]{{1,0}} parameter(0)
  ROOT %out = f32[8,128]{{1,0}} {opcode}(%x), channel_id=1, {groups}
}}
"""


def _read(opcode, groups):
  text = _TEXT.format(opcode=opcode, groups=groups)
  main = hlo_text.parse(text).computations["main"]
  return collectives.read(main, main.instructions["out"], opcode, 8)


@pytest.mark.parametrize(
  ("written", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    ("replica_groups={}", (tuple(range(8)),)),
  ],
)
def test_groups_are_read(written, groups):
  assert _read("all-reduce", written).groups == groups


@pytest.mark.parametrize(
  ("opcode", "share"),
  [
    ("all-reduce", 2 * 3 / 4),
    ("reduce-scatter", 3 / 4),
    ("all-to-all", 3 / 4),
    ("all-gather", 3),  # three parts, each as large as what goes in
  ],
)
def test_a_ring_of_four_sends(opcode, share):
  exchange = _read(opcode, "replica_groups={{0,1,2,3},{4,5,6,7}}")
  assert exchange.sent_bytes == pytest.approx(share * 8 * 128 * 4)


def test_a_permutation_sends_all_unless_nobody_moves():
  moves = _read("collective-permute", "source_target_pairs={{0,1},{1,0}}")
  assert moves.sent_bytes == 8 * 128 * 4
  stays = _read("collective-permute", "source_target_pairs={{0,0},{1,1}}")
  assert stays.sent_bytes == 0
