"""The device mesh, the logical axis rules, and the shardings they imply.

The mesh has three axes: `data` (replicas of the model), `fsdp` (parameters are
sharded along `embed` and all-gathered when used; the batch is sharded too) and
`model` (tensor parallelism over `mlp`, `heads`, `joined_kv` and `vocab`). A
model refers to logical axes only; the rules map them to mesh axes.

Example:
  >>> from specialize_jax.parallel import mesh, placement
  >>> place = placement.Placement(mesh=mesh.make_mesh(data=-1))
  >>> tuple(place.rules.partition_spec(("embed", "mlp")))
  ('fsdp', 'model')
"""
