"""Configurations of codebases for language."""

import jax.numpy as jnp
import optax

from experiments.audits import codebases as c
from experiments.audits import trees
from experiments.audits.codebases import FLAX, Codebase, always, times

T5X = ("google-research/t5x", "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16", "2026-04-21")
NANODO = ("google-deepmind/nanodo", "10aefdeed40a63293daf112b91a5538cd24fa3a4", "2024-06-04")
MAXTEXT = ("AI-Hypercomputer/maxtext", "e591f30cbbf217ed67ef71263ec0538239f9c3b8", "2026-08-22")
EASYLM = ("young-geng/EasyLM", "fe5b2c354e25d697fce7cd225e23bbbe72570da3", "2024-08-12")

LANGUAGE = (
    Codebase(
        "flax lm1b",
        *FLAX,
        "examples/lm1b/train.py:444-450",
        "examples/lm1b/configs/default.py:61-70",
        "weight_decay = 0.1",
        c.adamw(0.1, b2=0.98, eps=1e-9),
        c.inverse_root(0.0016, 1_000),
        500_000,
        trees.LM1B,
        times(0.1),
        "learning rate x 0.1",
        "No mask: norms, biases and the embedding decay.",
    ),
    Codebase(
        "flax wmt",
        *FLAX,
        "examples/wmt/train.py:553-559",
        "examples/wmt/configs/default.py:57-66",
        "weight_decay = 0.0",
        c.adamw(0.0, b2=0.98, eps=1e-9),
        c.inverse_root(0.002, 1_000),
        100_000,
        trees.LM1B._replace(whole=False),
        always(0.0),
        "0",
        "The option is there and 0; a value above it would decay every leaf, as in lm1b, whose "
        "names of leaves stand for its.",
    ),
    Codebase(
        "flax nlp_seq",
        *FLAX,
        "examples/nlp_seq/train.py:323-325",
        "examples/nlp_seq/configs/default.py:36-37",
        "weight_decay = 1e-1",
        c.adamw(0.1, b2=0.98, eps=1e-9),
        c.inverse_root(0.05 / 8_000**0.5, 8_000),
        75_000,
        trees.TAGGER,
        times(0.1),
        "learning rate x 0.1",
        "**The option does nothing**: `main.py:50` copies it to a flag that `train.py` does not "
        "read; the optimiser has 0.1 written in. No mask.",
    ),
    Codebase(
        "flax sst2",
        *FLAX,
        "examples/sst2/train.py:68-71",
        "examples/sst2/configs/default.py:36-42",
        "weight_decay = 3e-6",
        c.flax_sst2,
        lambda t: 0.1 + 0.0 * t,
        10_520,
        trees.SST2,
        always(-3e-6),
        "-3e-6: the weights grow",
        "**Decay has the wrong sign**: `add_decayed_weights` stands after `sgd`, whose updates are "
        "negative already, so every step adds 3e-6 of each weight, whatever the learning rate. So "
        "since commit a3990ed1 of 2021-05-06. (Steps: ten epochs of 67,349 sentences at 64.)",
        compared=True,
    ),
    Codebase(
        "T5X, AdamW example",
        *T5X,
        "t5x/examples/t5/t5_1_1/examples/base_wmt_from_scratch_adamw.gin:15-38",
        "t5x/examples/t5/t5_1_1/examples/base_wmt_from_scratch.gin:15",
        "not set (optax: 1e-4)",
        lambda lr: optax.chain(optax.clip(1.0), optax.adamw(lr)),
        c.cosine(1e-4, 1_000, 50_000),
        50_000,
        trees.T5_BASE,
        times(1e-4),
        "learning rate x 1e-4",
        "The configuration does not name decay; optax's default decays every leaf, by 1e-8 a "
        "step. T5X's own Adafactor has none unless `weight_decay_rate` is given, and does not "
        "multiply it by the learning rate unless `weight_decay_rate_lr_exponent` is given too "
        "(`t5x/adafactor.py:473-479,561-562`).",
    ),
    Codebase(
        "T5X on GPUs, AdamW",
        *T5X,
        "t5x/contrib/gpu/t5/t5_1_1/adamw_opt.gin:7-16",
        "t5x/contrib/gpu/t5/t5_1_1/examples/small_pile_pretrain.gin:1-13",
        "weight_decay = 0.01",
        c.adamw(0.01, clip=1.0),
        lambda t: 1e-4 + 0.0 * t,
        1_000_000,
        trees.T5_SMALL,
        times(0.01),
        "learning rate x 0.01",
        "No mask: norms, embedding and the bias of relative positions decay. The schedule of "
        "`configs/runs/pretrain_pile.gin:12-16` does not reach the optimiser, as the wrapper of "
        "optax's leaves the trainer's learning rate unused (`t5x/optimizers.py:403-417`): the rate "
        "stays what it is.",
    ),
    Codebase(
        "MaxText, default",
        *MAXTEXT,
        "src/maxtext/optimizers/optimizers.py:47-49,171-182",
        "src/maxtext/configs/base.yml:836,870-876,970,987-992",
        "adam_weight_decay = 0.1",
        c.adamw(0.1, b2=0.95),
        c.cosine(3e-5, 15_000, 150_001, end=3e-6),
        150_001,
        trees.LLAMA_MAXTEXT,
        times(0.1),
        "learning rate x 0.1",
        "The option for a mask, `adamw_mask`, is empty by default: norms and embedding decay. "
        "Stacked layers give norms two axes, so that a mask by axes would not tell them apart.",
        compared=True,
    ),
    Codebase(
        "MaxText, default with `opt_type: muon`",
        *MAXTEXT,
        "src/maxtext/optimizers/optimizers.py:195-227; src/maxtext/utils/muon_utils.py",
        "src/maxtext/configs/base.yml:987-1003, with one option changed by us",
        "adam_weight_decay = 0.1, muon_weight_decay = 0",
        c.maxtext_muon,
        c.cosine(3e-5, 15_000, 150_001, end=3e-6),
        150_001,
        trees.LLAMA_MAXTEXT,
        times(0.1),
        "learning rate x 0.1 outside of Muon",
        "**Matrices do not decay, the rest does**: of the two options Muon's is 0 by default, "
        "and that of AdamW, which keeps embedding, head and norms, is 0.1; `adamw_mask` does not "
        "reach it.",
        compared=True,
    ),
    Codebase(
        "Paxml and Praxis, GPT-3",
        *("google/praxis", "feeaff19915ca9c3de8b372b7427d15c81f0d757", "2026-07-22"),
        "praxis/optimizers.py:728-733,1512-1535",
        "google/paxml@b397693 (2026-05-04) paxml/tasks/lm/params/c4.py:626-641",
        "WEIGHT_DECAY = 0.1",
        c.adamw(0.1, b2=0.95, clip=1.0),
        c.cosine(6e-5, 265, 108_600, end=6e-6),
        108_600,
        trees.GPT3_PRAXIS,
        times(0.1),
        "learning rate x 0.1",
        "`Adam.weight_decay` takes no mask (`decoupled_weight_decay` does, from the collections of "
        "the variables): every leaf decays. With `sharded_adam=False` the same option is dropped, "
        "after a warning of its deprecation alone.",
        compared=True,
    ),
    Codebase(
        "Levanter, GPT-2 small",
        *("stanford-crfm/levanter", "9263f81e8b453241332c2c0b2d2001bfb2d2241c", "2025-09-26"),
        "src/levanter/optim/config.py:148-163,466-472",
        "config/gpt2_small.yaml:21-24",
        "weight_decay = 0.1",
        c.adamw(0.1, b2=0.95, mask=c.LEVANTER, clip=1.0),
        c.cosine(6e-4, 4_000, 400_000, end=6e-5),
        400_000,
        trees.GPT2_LEVANTER,
        times(0.1),
        "learning rate x 0.1",
        "By default norms, biases and embeddings are left out, by class; the embedding is also the "
        "head of GPT-2, which therefore does not decay. Its own mask, called on modules of "
        "these classes, takes the same four. 400,000 is the default number of steps.",
    ),
    Codebase(
        "EasyLM, LLaMA 7B",
        *EASYLM,
        "EasyLM/optimizers.py:177-187; EasyLM/models/llama/llama_train.py:86",
        "examples/pretrain_llama_7b.sh:27-32",
        "weight_decay = 0.1",
        c.adamw(0.1, b2=0.95, clip=1.0),
        c.cosine(3e-4, 2_000, 250_000, end=3e-5),
        250_000,
        trees.LLAMA_EASYLM,
        times(0.1),
        "learning rate x 0.1",
        "`get_weight_decay_mask` exists (`jax_utils.py:382`) and is never called: every leaf "
        "decays. The gains of its norms are called `kernel`, so a mask by that name would take "
        "them too.",
        compared=True,
    ),
    Codebase(
        "EasyLM, its PaLM optimiser",
        *EASYLM,
        "EasyLM/optimizers.py:87-114",
        "EasyLM/optimizers.py:70-77; EasyLM/models/llama/llama_train.py:34",
        "weight_decay = 1e-4",
        c.palm,
        lambda t: 1.0 / jnp.sqrt(jnp.maximum(t, 10_000)),
        10_000,
        trees.LLAMA_EASYLM,
        lambda lr: lr**2,
        "(weight_decay / 1e-4) x learning rate^2",
        "As in the PaLM paper the rate is the square of the learning rate; the option is a factor "
        "of it, and its default 1e-4 stands for a factor of 1.",
        compared=True,
    ),
    Codebase(
        "NanoDO, default",
        *NANODO,
        "nanodo/optimizer.py:156-184",
        "nanodo/configs/default.py:47-57",
        "weight_decay = 0.1",
        c.adamw(0.1, b2=0.98, eps=1e-9),
        c.cosine(0.0016, 1_000, 100_000, end=0.00016, start=0.00016),
        100_000,
        trees.NANODO,
        times(0.1),
        "learning rate x 0.1",
        "`_params_mask` leaves out biases and scales by default, but is called with "
        "`weight_decay_exclusion_names`, which is empty unless set: every leaf decays.",
        compared=True,
    ),
    Codebase(
        "NanoDO, default with `optimizer='adafactor'`",
        *NANODO,
        "nanodo/optimizer.py:162-173",
        "nanodo/configs/default.py:47-57, with one option changed by us",
        "weight_decay = 0.1",
        c.nanodo_adafactor,
        c.cosine(0.0016, 1_000, 100_000, end=0.00016, start=0.00016),
        100_000,
        trees.NANODO,
        always(0.1),
        "0.1, at any learning rate",
        "**The same number, another unit**: optax adds Adafactor's `weight_decay_rate` after the "
        "learning rate, so 0.1 removes a tenth of every weight at each step. Who switches from "
        "AdamW has to multiply it by the learning rate, here by about 1/600.",
        compared=True,
    ),
    Codebase(
        "midGPT, OpenWebText",
        *("AllanYangZhou/midGPT", "482be37b02f6b2a9116d09c081e427e17a507d91", "2024-09-29"),
        "src/train.py:153-159",
        "src/configs/openwebtext.py:7-14",
        "weight_decay = 1e-4",
        c.independent,
        c.cosine(1e-3, 5_000, 60_000, end=1e-5),
        60_000,
        trees.MIDGPT,
        lambda lr: 1e-4 * lr / 1e-3,
        "1e-4 x schedule, without the base rate",
        "Divided by the base learning rate first, so that the rate at the peak is the number "
        "itself and does not move with it. No mask.",
    ),
    Codebase(
        "mesh-transformer-jax, GPT-J 6B",
        *("kingoflolz/mesh-transformer-jax", "f8315e3003033b23f21d78361b288953064e0e76"),
        "2023-01-13",
        "device_train.py:176-183; mesh_transformer/util.py:80-82",
        "configs/6B_roto_256.json:15-20",
        "weight_decay = 0.1",
        c.adamw(0.1, clip=1.0, mask=c.MATRICES),
        c.gptj_schedule(1.2e-4, 1.2e-5, 3_000, 300_000),
        350_000,
        trees.GPTJ,
        times(0.1),
        "learning rate x 0.1",
        "Leaves of more than one axis: biases and norms are left out, the embedding decays.",
        compared=True,
    ),
    Codebase(
        "Tunix, GRPO on Gemma 2 2B",
        *("google/tunix", "c7d8950f12a9c55a976bf2e1a0d8b447d71c20b3", "2026-08-21"),
        "tunix/cli/config.py:632-670",
        "examples/rl/grpo/gsm8k/configs/gemma2_2b.yaml:48-60",
        "weight_decay = 0.1",
        c.injected_adamw,
        c.cosine(3e-6, 374, 3_738),
        3_738,
        trees.LORA_TUNIX,
        times(0.1),
        "learning rate x 0.1",
        "Its LoRA factors alone are trained (`tunix/sft/peft_trainer.py:368-369`), and decay: they "
        "lose next to nothing in the run. Names of leaves are ours.",
    ),
)
