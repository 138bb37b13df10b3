"""From questions and teacher rows to packed, resumable batches.

The room reads files through seqio sources, renders and tokenizes them in
tf.data, and packs what comes out into the batches that training steps take.
Everything in it is deterministic given a seed, and global batch n is a pure
function of (seed, mixture, n), whatever the number of hosts.
"""
