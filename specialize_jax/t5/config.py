"""The configuration of a T5 network.

T5 1.0 (Raffel et al., arXiv 1910.10683) has `mlp_activations=("relu",)` and
`tied_head=True`; T5 1.1 and FlanT5 have `("gelu", "linear")` and an untied
head. There are no other differences between the families.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from specialize_jax import errors

PAD_ID = 0
"""T5's padding, which is also its decoder's start: see `T5Config.pad_id`."""

EOS_ID = 1
"""T5's end of sequence: see `T5Config.eos_ids`."""

ACTIVATIONS = ("relu", "gelu", "linear")
REMAT_POLICIES = ("none", "dots", "minimal", "lean", "full")
RELATIVE_BIASES = ("per_stack", "per_layer")
ATTENTIONS = ("default", "plain", "tpu", "tpu_interpreted")
LANES = 128
"""Columns of a TPU's registers, of which a kernel's blocks are multiples."""

# Of parameters, activations and sums of gradients.
_DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """The shape and the numerics of one network.

  Attributes:
    vocab_size: rows of the embedding, padding rows included (32,128 in the
      released checkpoints, whose vocabularies have 32,100 tokens).
    embed_dim: width of the residual stream (D).
    mlp_dim: width of the feed-forward blocks (F).
    num_heads: attention heads (H); `num_heads * head_dim` need not be
      `embed_dim`.
    head_dim: width of one head (K).
    num_encoder_layers: depth of the encoder.
    num_decoder_layers: depth of the decoder.
    mlp_activations: one name for each input kernel of a feed-forward block,
      whose activations are multiplied: `("relu",)` or `("gelu", "linear")`.
    tied_head: whether the output kernel is the embedding, its logits scaled
      by `embed_dim ** -0.5`.
    dropout_rate: the rate of every dropout, in [0, 1).
    relative_bias: `per_stack` for a relative position table that all layers of
      a stack share, as in T5; `per_layer` for one in each layer, as in T5X's
      scalable_t5 and in UMT5.
    relative_attention_num_buckets: rows of a relative position table.
    relative_attention_max_distance: the distance in tokens at which the
      buckets, of logarithmic width, would end; all distances share the last one
      from somewhat below it on (for 128 from 91, in the decoder from 113).
    layer_norm_epsilon: added to the mean square before its root.
    dtype: the dtype of activations; norms, softmax and logits are always
      float32 (float64 with float64). One of float16, bfloat16, float32 and
      float64, in any of JAX's spellings; it is stored as its name.
    param_dtype: the dtype of parameters.
    gradient_dtype: the dtype in which devices sum the gradients of kernels over
      the batch; `bfloat16` halves the bytes communicated, and rounds every
      partial sum to 8 bits. With a `dtype` of float64, float32 means float64.
    remat_policy: what the backward pass recomputes, from the least to the
      most: `none` nothing; `dots` everything except matmuls and the outputs of
      the TPU's attention kernel; `minimal` everything except matmuls with
      parameters and the kernel's outputs in the encoder; `lean` everything
      except matmuls with parameters (T5X's `minimal`); `full` everything except
      the inputs of each layer.
    scan_layers: whether the layers of a stack are one scanned layer with
      stacked parameters, which compiles in time independent of depth.
    pad_id: the padding token of the encoder's input, to which no position
      attends. Ignored if there are segment ids.
    decoder_start_id: the first input token of the decoder.
    eos_ids: the tokens that end a sequence. The first is appended to encoded
      texts; decoding stops at any of them.
    attention: the implementation. `default` is the TPU kernel on TPUs, if it
      supports the head size and the lengths, and otherwise `plain`, in JAX
      operations; `tpu` is the kernel or an error; `tpu_interpreted` runs the
      kernel in interpret mode on any platform, slowly, for tests.
    attention_kernel_block: the maximum number of queries and of keys of a block
      of the TPU kernel, a multiple of 128; None for the largest that fits into
      VMEM.
    attention_block_sizes: the numbers of queries and of keys of a block of
      plain attention, which skips masked blocks if there are more than two
      blocks of keys; None for no blocks. Intended for packed rows on a CPU.
  """

  vocab_size: int
  embed_dim: int
  mlp_dim: int
  num_heads: int
  head_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...]
  tied_head: bool
  dropout_rate: float = 0.1
  relative_bias: str = "per_stack"
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6
  dtype: str = "bfloat16"
  param_dtype: str = "float32"
  gradient_dtype: str = "float32"
  remat_policy: str = "none"
  scan_layers: bool = True
  pad_id: int = PAD_ID
  decoder_start_id: int = PAD_ID
  eos_ids: tuple[int, ...] = (EOS_ID,)
  attention: str = "default"
  attention_kernel_block: int | None = None
  attention_block_sizes: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    """Normalizes spellings; raises UserError for an invalid value."""
    for name in ("dtype", "param_dtype", "gradient_dtype"):
      object.__setattr__(self, name, _dtype_name(name, getattr(self, name)))
    object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name in ("pad_id", "decoder_start_id"):
        continue  # see `_check_special_ids`
      if field.type is int and not (
        type(value) is int and 1 <= value <= errors.MAX_COUNT
      ):
        raise errors.UserError(
          f"T5Config.{field.name} is {value!r}, and must be a whole number of "
          f"at least 1 and at most {errors.MAX_COUNT}: include the gin file of "
          "a size, such as models/flan_t5_base.gin."
        )
    unknown = sorted(set(self.mlp_activations) - set(ACTIVATIONS))
    if unknown or not self.mlp_activations:
      raise errors.UserError(
        f"T5Config.mlp_activations is {self.mlp_activations}, and must be "
        f"one or more of {', '.join(ACTIVATIONS)}: T5 1.0 has ('relu',), "
        "T5 1.1 ('gelu', 'linear')."
      )
    if self.remat_policy not in REMAT_POLICIES:
      raise errors.UserError(
        f"T5Config.remat_policy is {self.remat_policy!r}, and must be one of "
        f"{', '.join(REMAT_POLICIES)}."
      )
    if self.relative_bias not in RELATIVE_BIASES:
      raise errors.UserError(
        f"T5Config.relative_bias is {self.relative_bias!r}, and must be one of "
        f"{', '.join(RELATIVE_BIASES)}."
      )
    self._check_attention()
    self._check_special_ids()
    if not 0.0 <= self.dropout_rate < 1.0:
      raise errors.UserError(
        f"T5Config.dropout_rate is {self.dropout_rate}, and must be at least "
        "0 and below 1."
      )
    if not 0.0 <= self.layer_norm_epsilon < math.inf:
      raise errors.UserError(
        f"T5Config.layer_norm_epsilon is {self.layer_norm_epsilon}, and must be"
        " at least 0."
      )
    if self.relative_attention_num_buckets < 4:
      raise errors.UserError(
        "T5Config.relative_attention_num_buckets is "
        f"{self.relative_attention_num_buckets}, and must be at least 4, so "
        "that each direction has near and far buckets."
      )
    # A decoder has one direction: half of its buckets are of single distances.
    exact = self.relative_attention_num_buckets // 2
    if self.relative_attention_max_distance <= exact:
      raise errors.UserError(
        "T5Config.relative_attention_max_distance is "
        f"{self.relative_attention_max_distance}, and must be above {exact},"
        " half of relative_attention_num_buckets, so that there are distances"
        " for the far buckets."
      )

  def _check_attention(self) -> None:
    if self.attention not in ATTENTIONS:
      raise errors.UserError(
        f"T5Config.attention is {self.attention!r}, and must be one of "
        f"{', '.join(ATTENTIONS)}."
      )
    block = self.attention_kernel_block
    if block is not None and not (
      type(block) is int and block >= 1 and block % LANES == 0
    ):
      raise errors.UserError(
        f"T5Config.attention_kernel_block is {block!r}, and must be a multiple "
        f"of {LANES}, the columns of a TPU's registers, or None for the "
        "largest that fits."
      )
    sizes = self.attention_block_sizes
    if sizes is None:
      return
    if not (
      isinstance(sizes, (tuple, list))
      and len(sizes) == 2
      and all(type(size) is int and size >= 1 for size in sizes)
    ):
      raise errors.UserError(
        f"T5Config.attention_block_sizes is {sizes!r}, and must be two whole "
        "numbers of at least 1, queries and keys, as (384, 256), or None for "
        "attention without blocks."
      )
    object.__setattr__(self, "attention_block_sizes", tuple(sizes))

  def _check_special_ids(self) -> None:
    if not isinstance(self.eos_ids, (tuple, list)) or not self.eos_ids:
      raise errors.UserError(
        f"T5Config.eos_ids is {self.eos_ids!r}, and must be one or more token "
        "ids that end a sequence, such as (1,)."
      )
    object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
    for name, value in (
      ("pad_id", self.pad_id),
      ("decoder_start_id", self.decoder_start_id),
      *(("eos_ids", value) for value in self.eos_ids),
    ):
      if type(value) is not int or not 0 <= value < self.vocab_size:
        raise errors.UserError(
          f"T5Config.{name} holds {value!r}, and must be of token ids from 0 to"
          f" {self.vocab_size - 1}, the rows of the vocabulary."
        )
    if self.pad_id in self.eos_ids:
      raise errors.UserError(
        f"T5Config.pad_id and eos_ids are both {self.pad_id}: what is padding "
        "could not be distinguished from the end of a sequence. Give the "
        "padding token an id of its own."
      )

  @property
  def eos_id(self) -> int:
    """The token that ends a text that is encoded."""
    return self.eos_ids[0]

  @property
  def gradient_sum_dtype(self) -> str:
    """The dtype in which kernels' gradients are summed over devices."""
    if self.dtype == "float64" and self.gradient_dtype == "float32":
      return self.dtype
    return self.gradient_dtype

  @property
  def joined_kv_dim(self) -> int:
    """Width of all heads together, `num_heads * head_dim`."""
    return self.num_heads * self.head_dim


def _dtype_name(name: str, value: object) -> str:
  try:
    dtype = jnp.dtype(value)
  except (TypeError, ValueError, SyntaxError) as error:  # NumPy parses text
    raise errors.UserError(
      f"T5Config.{name} is {value!r}, and must be a floating point type such "
      "as 'bfloat16' or 'float32'."
    ) from error
  if dtype.name not in _DTYPES:
    raise errors.UserError(
      f"T5Config.{name} is {dtype.name!r}, and must be a floating point type "
      "such as 'bfloat16' or 'float32'."
    )
  if dtype.name == "float64" and not jax.config.jax_enable_x64:
    raise errors.UserError(
      f"T5Config.{name} is 'float64', which JAX has only with JAX_ENABLE_X64=1:"
      " set that, or use 'float32'."
    )
  return dtype.name
