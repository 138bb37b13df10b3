"""Distills a teacher's top-k probabilities into a small model, with optax.

The student is a bigram model: an embedding and an output head. The teacher is
a table of the two most likely next tokens of each token, as an API returns
them: token ids and probabilities that sum to less than one.

  python examples/distillation_loop.py
"""

import jax
import jax.numpy as jnp
import optax

from specialize_jax import losses

VOCAB, EMBED = 12, 8
TOKENS = jnp.arange(VOCAB)[None]  # one row that holds every token once
TEACHER_IDS = jnp.stack([(TOKENS + 1) % VOCAB, (TOKENS + 5) % VOCAB], axis=-1)
TEACHER_PROBS = jnp.broadcast_to(jnp.array([0.7, 0.2]), TEACHER_IDS.shape)


def loss_fn(params):
  hidden = params["embedding"][TOKENS]  # [1, 12, EMBED]
  return losses.sparse_kl_from_hidden(
    hidden, params["head"], TEACHER_IDS, TEACHER_PROBS, num_chunks=2
  ).mean()


@jax.jit
def train_step(params, opt_state):
  loss, gradients = jax.value_and_grad(loss_fn)(params)
  updates, opt_state = optimizer.update(gradients, opt_state)
  return optax.apply_updates(params, updates), opt_state, loss


initializer = jax.nn.initializers.normal(0.5)
embedding_key, head_key = jax.random.split(jax.random.key(0))
params = {
  "embedding": initializer(embedding_key, (VOCAB, EMBED)),
  "head": initializer(head_key, (EMBED, VOCAB)),
}
optimizer = optax.adam(0.05)
opt_state = optimizer.init(params)
for step in range(201):
  params, opt_state, loss = train_step(params, opt_state)
  if step % 50 == 0:
    print(f"step {step:3d}  KL(teacher || student) {loss:.4f} nats")

probs = jax.nn.softmax(params["embedding"][0] @ params["head"])
print(f"after token 0: p(1) = {probs[1]:.2f}, p(5) = {probs[5]:.2f}")
assert loss < 0.01
