"""The parameters of each codebase's model, by its own names, at published sizes and small.

A tree is `{path: axes}`, where axes are names of sizes: `"E F"` is a matrix from E to F. A path
that holds `_0` or `/0/` stands for each of the model's `N` layers; the leading axis `N` of a
stacked leaf holds them all.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Tree(NamedTuple):
    """The leaves of a model, and how long its axes are."""

    axes: Mapping[str, str]
    """Per path, the names of its axes."""
    sizes: Mapping[str, int]
    """Per name, the published length; `N` is the number of layers. A figure names itself."""
    whole: bool = True
    """All kinds of leaves are there, so that shares of the model's weights can be told."""


def weights_of(tree: Tree, path: str) -> int:
    """How many weights all leaves have that a path stands for."""
    names = tree.axes[path].split()
    layers = 1 if "N" in names or not _in_a_layer(path) else tree.sizes["N"]
    return layers * math.prod(int(name) if name.isdigit() else tree.sizes[name] for name in names)


def small_params(tree: Tree) -> dict[str, Any]:
    """The tree with axes of 2 to 4 and random float32 weights."""
    r = np.random.default_rng(0)
    nested: dict[str, Any] = {}
    lengths = {name: 2 + index % 3 for index, name in enumerate(sorted(tree.sizes))}
    for path, names in tree.axes.items():
        shape = tuple(min(int(n), 3) if n.isdigit() else lengths[n] for n in names.split())
        *parents, last = path.split("/")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = jnp.asarray(r.normal(size=shape), jnp.float32)
    return nested


def masked(params: Any, keep: Any) -> Any:
    """A tree of booleans: `keep(names, leaf)` for each leaf, names being its keys."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bool(keep(tuple(str(entry.key) for entry in path), leaf)), params
    )


def _in_a_layer(path: str) -> bool:
    return not LAYERS.isdisjoint(path.split("/"))


LAYERS = {
    "0",
    "Encoder1DBlock_0",
    "blocks_0",
    "encoderblock_0",
    "encoderdecoderblock_0",
    "layer_0",
    "layers_0",
}
"""Names of the first of the layers that repeat (a `LayerNorm_0` is only the first in its layer)."""


def dense(name: str, axes: str, bias: str | None = None) -> dict[str, str]:
    return {f"{name}/kernel": axes} | ({} if bias is None else {f"{name}/bias": bias})


def norm(name: str, *, bias: bool = True) -> dict[str, str]:
    return {f"{name}/scale": "E"} | ({f"{name}/bias": "E"} if bias else {})


def flax_attention(name: str, *, bias: bool = True) -> dict[str, str]:
    """`flax.linen.MultiHeadDotProductAttention`, whose biases of queries have two axes."""
    parts = {}
    for part in ("query", "key", "value"):
        parts |= dense(f"{name}/{part}", "E H D", "H D" if bias else None)
    return parts | dense(f"{name}/out", "H D E", "E" if bias else None)


def flax_block(block: str, mlp: str = "MlpBlock_0", *, bias: bool = True) -> dict[str, str]:
    """A transformer block as flax's examples and the ViTs have it."""
    return (
        norm(f"{block}/LayerNorm_0")
        | flax_attention(f"{block}/MultiHeadDotProductAttention_0", bias=bias)
        | norm(f"{block}/LayerNorm_1")
        | dense(f"{block}/{mlp}/Dense_0", "E F", "F")
        | dense(f"{block}/{mlp}/Dense_1", "F E", "E")
    )


def vit(*, extra: Mapping[str, str], head: str, sizes: Mapping[str, int]) -> Tree:
    body = flax_block("Transformer/encoderblock_0") | norm("Transformer/encoder_norm")
    stem = dense("embedding", "P P C E", "E")
    ends = dense("pre_logits", "E E", "E") | dense(head, "E O", "O")
    return Tree({**stem, **extra, **body, **ends}, sizes)


VIT_B = {"E": 768, "F": 3072, "H": 12, "D": 64, "N": 12, "O": 1000, "P": 16, "C": 3, "T": 197}
VIT_S = VIT_B | {"E": 384, "F": 1536, "H": 6}
VIT_BIG_VISION = vit(extra={}, head="head", sizes=VIT_S)
VIT_SCENIC = vit(
    extra={"cls": "1 1 E", "Transformer/posembed_input/pos_embedding": "1 T E"},
    head="output_projection",
    sizes=VIT_B,
)
VIT_FINE_TUNED = vit(
    extra={"cls": "1 1 E", "Transformer/posembed_input/pos_embedding": "1 T E"},
    head="head",
    sizes=VIT_B | {"O": 10, "T": 577},
)
_ALGOPERF = "Transformer/encoderblock_0"
VIT_ALGOPERF = Tree(
    dense("conv_patch_extract", "P P C E", "E")
    | norm(f"{_ALGOPERF}/LayerNorm_0")
    | flax_attention(f"{_ALGOPERF}/MultiHeadDotProductAttention_1")
    | norm(f"{_ALGOPERF}/LayerNorm_2")
    | dense(f"{_ALGOPERF}/MlpBlock_3/Dense_0", "E F", "F")
    | dense(f"{_ALGOPERF}/MlpBlock_3/Dense_1", "F E", "E")
    | norm("Transformer/encoder_layernorm")
    | dense("pre_logits", "E E", "E")
    | dense("head", "E O", "O"),
    VIT_S,
)

_KAULDRON = "encoder/layers_0"
VIT_KAULDRON = Tree(
    {"encoder/cls": "E", "encoder/pos_embedding/embeddings": "T E"}
    | dense("encoder/embedding/patchifier", "P P C E", "E")
    | norm(f"{_KAULDRON}/attention_norm")
    | norm(f"{_KAULDRON}/mlp_norm")
    | flax_attention(f"{_KAULDRON}/attention")
    | {f"{_KAULDRON}/attention/{part}_norm/scale": "D" for part in ("query", "key")}
    | dense(f"{_KAULDRON}/mlp/dense_in", "E F", "F")
    | dense(f"{_KAULDRON}/mlp/dense_out", "F E", "E")
    | norm("encoder/encoder_norm", bias=False)
    | dense("pre_logits", "E E", "E")
    | dense("classifier_head", "E O", "O"),
    VIT_B | {"T": 16},
)

OCTO = Tree(
    {
        f"octo_transformer/{group}_pos_embedding": "1 T E"
        for group in ("task_language", "obs_primary", "readout_action")
    }
    | dense("octo_transformer/obs_primary_projection", "C E", "E")
    | {
        f"octo_transformer/BlockTransformer_0/Transformer_0/{path}": axes
        for path, axes in (flax_block("encoderblock_0") | norm("encoder_norm")).items()
    }
    | dense("heads_action/diffusion_model/reverse_network/Dense_0", "E F", "F")
    | {"octo_transformer/task_tokenizers_language/hf_model/shared/embedding": "V W"},
    VIT_S | {"T": 16, "C": 512, "V": 32128, "W": 768},
    whole=False,
)

RESNET_FLAX = Tree(
    {"conv_init/kernel": "P P C E"}
    | norm("bn_init")
    | {
        f"BottleneckResNetBlock_0/Conv_{i}/kernel": f"{size} {size} E E"
        for i, size in ((0, 1), (1, 3))
    }
    | norm("BottleneckResNetBlock_0/BatchNorm_0")
    | dense("Dense_0", "F O", "O"),
    {"P": 7, "C": 3, "E": 64, "F": 2048, "O": 1000, "N": 1},
    whole=False,
)

LM1B = Tree(
    {"decoder/Embed_0/embedding": "V E"}
    | {
        f"decoder/{path}": axes
        for path, axes in flax_block("encoderdecoderblock_0", bias=False).items()
    }
    | norm("decoder/encoderdecoder_norm")
    | dense("decoder/logitdense", "E V", "V"),
    {"V": 30_000, "E": 512, "F": 2048, "H": 8, "D": 64, "N": 6},
)
TAGGER = Tree(
    {"embed/embedding": "V E"}
    | flax_block("Encoder1DBlock_0", bias=False)
    | norm("LayerNorm_0")
    | dense("Dense_0", "E O", "O"),
    {"V": 10_000, "O": 50, "E": 512, "F": 2048, "H": 8, "D": 64, "N": 6},
    whole=False,
)

SST2 = Tree(
    {"embedder/embedding": "V E"}
    | {
        f"encoder/{way}_lstm/OptimizedLSTMCell_0/{name}": axes
        for way in ("forward", "backward")
        for gate in "ifgo"
        for name, axes in (dense(f"h{gate}", "H H", "H") | dense(f"i{gate}", "E H")).items()
    }
    | dense("classifier/keys_only_mlp_attention/keys", "B H")
    | dense("classifier/keys_only_mlp_attention/energy", "H O")
    | dense("classifier/mlp/intermediate_layer", "B H", "H")
    | dense("classifier/mlp/output_layer", "H O"),
    {"V": 15_000, "E": 300, "H": 256, "B": 512, "O": 1, "N": 1},
    whole=False,
)


def _t5(sizes: Mapping[str, int]) -> Tree:
    attention = lambda name: (
        {f"{name}/{part}/kernel": "E J" for part in ("query", "key", "value")}
        | {f"{name}/out/kernel": "J E"}
    )
    mlp = lambda name: (
        dense(f"{name}/wi_0", "E F") | dense(f"{name}/wi_1", "E F") | dense(f"{name}/wo", "F E")
    )
    encoder = (
        attention("attention")
        | mlp("mlp")
        | norm("pre_attention_layer_norm", bias=False)
        | norm("pre_mlp_layer_norm", bias=False)
    )
    decoder = (
        attention("self_attention")
        | attention("encoder_decoder_attention")
        | mlp("mlp")
        | norm("pre_self_attention_layer_norm", bias=False)
        | norm("pre_cross_attention_layer_norm", bias=False)
        | norm("pre_mlp_layer_norm", bias=False)
    )
    ends = {"token_embedder/embedding": "V E", "decoder/logits_dense/kernel": "E V"}
    for side in ("encoder", "decoder"):
        ends |= norm(f"{side}/{side}_norm", bias=False)
        ends |= {f"{side}/relpos_bias/rel_embedding": "H R"}
    return Tree(
        ends
        | {f"encoder/layers_0/{path}": axes for path, axes in encoder.items()}
        | {f"decoder/layers_0/{path}": axes for path, axes in decoder.items()},
        sizes,
    )


T5_BASE = _t5({"E": 768, "J": 768, "F": 2048, "V": 32128, "H": 12, "R": 32, "N": 12})
T5_SMALL = _t5({"E": 512, "J": 384, "F": 1024, "V": 32128, "H": 6, "R": 32, "N": 8})

_MAXTEXT = "decoder/layers"
LLAMA_MAXTEXT = Tree(
    {"token_embedder/embedding": "V E", "decoder/decoder_norm/scale": "E"}
    | {f"{_MAXTEXT}/self_attention/{p}/kernel": "E N H D" for p in ("query", "key", "value")}
    | {f"{_MAXTEXT}/self_attention/out/kernel": "H N D E"}
    | {f"{_MAXTEXT}/{when}_self_attention_layer_norm/scale": "E N" for when in ("pre", "post")}
    | {f"{_MAXTEXT}/mlp/{part}/kernel": "E N F" for part in ("wi_0", "wi_1")}
    | {f"{_MAXTEXT}/mlp/wo/kernel": "F N E", "decoder/logits_dense/kernel": "E V"},
    {"V": 32_000, "E": 2048, "F": 7168, "H": 16, "D": 128, "N": 16},
)

LLAMA_EASYLM = Tree(
    {"transformer/wte/embedding": "V E", "transformer/ln_f/kernel": "E", "lm_head/kernel": "E V"}
    | {f"transformer/h/0/attention/{part}/kernel": "E E" for part in ("wq", "wk", "wv", "wo")}
    | {f"transformer/h/0/feed_forward/{part}/kernel": "E F" for part in ("w1", "w3")}
    | {"transformer/h/0/feed_forward/w2/kernel": "F E"}
    | {f"transformer/h/0/{part}_norm/kernel": "E" for part in ("attention", "ffn")},
    {"V": 32_000, "E": 4096, "F": 11_008, "N": 32},
)

GPT3_PRAXIS = Tree(
    {
        f"lm/transformer/repeat/sub/x_layers_0/{path}": axes
        for path, axes in {
            "layer_norm/scale": "N E",
            "layer_norm/bias": "N E",
            "self_attention/combined_qkv/w": "N 3 E H D",
            "self_attention/combined_qkv/b": "N 3 H D",
            "self_attention/post/w": "N E H D",
            "self_attention/post/b": "N E",
            "ff_layer/layer_norm/scale": "N E",
            "ff_layer/layer_norm/bias": "N E",
            "ff_layer/ffn_layer1/linear/w": "N E F",
            "ff_layer/ffn_layer1/bias/b": "N F",
            "ff_layer/ffn_layer2/linear/w": "N F E",
            "ff_layer/ffn_layer2/bias/b": "N E",
        }.items()
    }
    | norm("lm/final_ln")
    | {"lm/position_emb/emb_var": "T E", "lm/softmax/logits_ffn/linear/w": "E V"},
    {"E": 12_288, "F": 49_152, "H": 96, "D": 128, "V": 50_257, "T": 16_384, "N": 96},
)

GPT2_LEVANTER = Tree(
    {f"transformer/blocks/ln_{i}/{name}": "N E" for i in (1, 2) for name in ("weight", "bias")}
    | {"transformer/blocks/attn/c_attn/weight": "N E 3 H D"}
    | {"transformer/blocks/attn/c_attn/bias": "N 3 H D"}
    | {"transformer/blocks/attn/c_proj/weight": "N H D E"}
    | {"transformer/blocks/attn/c_proj/bias": "N E"}
    | {"transformer/blocks/mlp/c_fc/weight": "N E F", "transformer/blocks/mlp/c_fc/bias": "N F"}
    | {"transformer/blocks/mlp/c_proj/weight": "N F E"}
    | {"transformer/blocks/mlp/c_proj/bias": "N E"}
    | {f"transformer/ln_f/{name}": "E" for name in ("weight", "bias")}
    | {"embeddings/token_embeddings/weight": "V E"}
    | {"embeddings/position_embeddings/weight": "T E"},
    {"V": 50_257, "T": 1024, "E": 768, "F": 3072, "H": 12, "D": 64, "N": 12},
)

NANODO = Tree(
    {"embed/embedding": "V E", "pos_embed/embedding": "T E"}
    | norm("blocks_0/LayerNorm_0", bias=False)
    | norm("blocks_0/LayerNorm_1", bias=False)
    | {f"blocks_0/CausalAttn_0/{p}/kernel": "E H D" for p in ("query", "key", "value")}
    | {"blocks_0/CausalAttn_0/attn_out_proj/kernel": "H D E"}
    | {"blocks_0/Mlp_0/Dense_0/kernel": "E F", "blocks_0/Mlp_0/Dense_1/kernel": "F E"}
    | norm("out_ln", bias=False),
    {"V": 32_000, "T": 512, "E": 512, "F": 2048, "H": 8, "D": 64, "N": 6},
)

MIDGPT = Tree(
    {"wte/weight_VxD": "V E", "lm_head/weight_MxN": "V E"}
    | {"blocks/attn/c_attn/weight_MxN": "N G E", "blocks/attn/c_proj/weight_MxN": "N E E"}
    | {"blocks/attn/q_ln/weight": "N D", "blocks/attn/k_ln/weight": "N D"}
    | {"blocks/mlp/c_fc/weight_MxN": "N F E", "blocks/mlp/c_proj/weight_MxN": "N E F"},
    {"V": 50_304, "E": 768, "G": 2304, "F": 3072, "D": 64, "N": 12},
)

_GPTJ = "causal_transformer_shard/~"
GPTJ = Tree(
    {f"{_GPTJ}/embedding_shard/~/linear/w": "V E", f"{_GPTJ}/embedding_shard/~/linear/b": "E"}
    | {f"{_GPTJ}/layer_0/~/{name}/w": "E E" for name in ("linear", "linear_1", "linear_2")}
    | {f"{_GPTJ}/layer_0/~/linear_3/w": "E E"}
    | {f"{_GPTJ}/layer_0/~/linear_4/w": "E F", f"{_GPTJ}/layer_0/~/linear_4/b": "F"}
    | {f"{_GPTJ}/layer_0/~/linear_5/w": "F E", f"{_GPTJ}/layer_0/~/linear_5/b": "E"}
    | {f"{_GPTJ}/layer_0/~/replicated_layer_norm/{n}": "E" for n in ("scale", "offset")}
    | {f"{_GPTJ}/projection_shard/~/replicated_layer_norm/{n}": "E" for n in ("scale", "offset")}
    | {f"{_GPTJ}/projection_shard/~/linear/w": "E V", f"{_GPTJ}/projection_shard/~/linear/b": "V"},
    {"V": 50_400, "E": 4096, "F": 16_384, "N": 28},
)

BYOL = Tree(
    {"res_net50/~/initial_conv/w": "P P C E"}
    | {f"res_net50/~/initial_batchnorm/{name}": "E" for name in ("scale", "offset")}
    | {"projector/linear/w": "F G", "projector/linear/b": "G"}
    | {f"projector/batch_norm/{name}": "G" for name in ("scale", "offset")}
    | {"projector/linear_1/w": "G D", "classifier/w": "F O", "classifier/b": "O"},
    {"P": 7, "C": 3, "E": 64, "F": 2048, "G": 4096, "D": 256, "O": 1000, "N": 1},
    whole=False,
)

LORA_TUNIX = Tree(
    {
        f"layers/0/{name}_{side}": axes
        for name, ends in {
            "attn/q_einsum/w_lora": ("E R", "R H D"),
            "mlp/gate_proj/kernel_lora": ("E R", "R F"),
            "mlp/down_proj/kernel_lora": ("F R", "R E"),
        }.items()
        for side, axes in zip("ab", ends, strict=True)
    },
    {"E": 2304, "F": 9216, "H": 8, "D": 256, "R": 64, "N": 26},
    whole=False,
)

PPO_BRAX = Tree(
    {
        f"{net}/hidden_{layer}/{name}": axes
        for net in ("policy", "value")
        for layer, ends in enumerate(("O H", "H H", "H A"))
        for name, axes in (("kernel", ends), ("bias", ends.split()[1]))
    },
    {"O": 17, "H": 32, "A": 12, "N": 1},
    whole=False,
)
