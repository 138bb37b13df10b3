"""Pure functions from arrays to unreduced losses, `[B, T]`, in nats.

Nothing here knows a model, a batch's origin or a mesh. Logits, softmax,
log-sum-exp and every loss are float32 (float64 where the logits are).

What the room assumes: ids lie in `[0, V)`; a teacher slot of probability zero
is unused, whatever its id; the used ids of one position differ from each other
(the aligner merges equal ones), else their student mass would count twice.

What it promises: finite values and gradients for finite logits; nothing at a
position of weight zero reaches a loss or a gradient; the vocabulary axis may
be sharded, and is then reduced where it lies, never gathered.
"""
