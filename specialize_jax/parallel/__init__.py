"""The device mesh, the logical axis rules, and placing arrays by them.

Three mesh axes: `data` (replicas of the model), `fsdp` (parameters cut along
`embed`, gathered when used; also cuts the batch) and `model` (tensor
parallelism: `mlp`, `heads`, `joined_kv`, `vocab`). A model names logical axes
and never a mesh axis; the rules are the only place where the two meet.
"""
