"""The options of `apdm harden` for the simulated attackers: one of them, how they differ, and a pool of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apdm.config.options import option
from apdm.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class L2PConfig:
    """Learning to Protect (Algorithm 1 of APDM): the attacker that is simulated in every outer step."""

    inner_steps: int = option(
        20,
        "Steps that the simulated attacker trains for in each outer step (N_per). The time of a run grows in "
        "proportion. With more steps, the defender meets an attacker that has trained longer. In the paper's Table 7, "
        "20 protects better than 10 or 5. The released code uses 10 for Stable Diffusion 2.1.",
        at_least=1,
        common="simulated attackers",
    )
    learning_rate: float = option(
        5e-6,
        "Learning rate of the simulated attacker's AdamW, which starts fresh in every outer step. 5e-6 is the paper's, "
        "and common for DreamBooth on Stable Diffusion 1.5.",
        above=0,
    )
    prior_loss_weight: float = option(
        1.0,
        "Weight of the simulated attacker's prior preservation, L_ppl in its loss L_per (Eq. 3-5). 0 simulates an "
        "attacker who trains on the photos alone. 1 is the paper's and DreamBooth's.",
        at_least=0,
    )
    max_grad_norm: float = option(
        0.0,
        "Clip the simulated attacker's gradient to this norm; 0 does not clip, as in the released code. A real "
        "DreamBooth run clips at 1.",
        at_least=0,
    )
    accumulate: Literal["sum", "mean"] = option(
        "sum",
        "Whether theta moves along the sum or the mean of the protective gradients of an outer step. AdamW's step does "
        "not depend on the scale of the gradient, so the two differ little unless max_grad_norm clips the result. The "
        "paper takes the sum.",
    )
    evaluate: Literal["after", "before"] = option(
        "after",
        "When the protective loss is computed: after each step of the attacker (Algorithm 1 and the released code), or "
        "before each step (Eq. 18-19 of the paper's text). It is computed at the attacker's weights theta'.",
    )
    attackers: Literal["synchronous", "independent"] = option(
        "synchronous",
        "What several processes simulate. synchronous: all processes together simulate one attacker on the whole "
        "batch, exactly as one process would. independent: every process simulates a different attacker on its share "
        "of the batch, which is more diverse and exchanges less data. independent needs DDP.",
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = option(
        "adamw",
        "The simulated attacker's optimizer. adamw is the paper's and holds two extra copies of the weights. adamw8bit "
        "rounds its moments to 8 bits (half a copy; needs bitsandbytes). adafactor has no momentum and holds almost "
        "nothing.",
    )
    lora_share: float = option(
        0.0,
        "Share of the simulated attackers that train a LoRA instead of all weights. Without a pool, the random seed "
        "decides which ones. 0 is the paper's. 1 saves three copies of the weights, or two if ema_decay is set.",
        at_least=0,
        at_most=1,
        common="simulated attackers",
    )
    lora_rank: int = option(
        4,
        "Rank of the simulated attacker's LoRA. 4 is the default of diffusers' scripts.",
        at_least=1,
        common="simulated attackers",
    )
    lora_target: Literal["attention", "linear", "all"] = option(
        "attention",
        "Layers that the LoRA adapts. attention: the projections of attention layers, and in a transformer also the "
        "projections of the prompt. linear: all linear layers. all: linear layers and convolutions.",
        common="simulated attackers",
    )
    lora_learning_rate: float = option(
        1e-4,
        "Learning rate of the LoRA's AdamW. 1e-4 is the default of diffusers' LoRA scripts, 20 times the learning rate "
        "of full fine-tuning.",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class VarietyConfig:
    """How simulated attackers differ: each attacker draws one value from every list. Without lists all are alike."""

    instance_prompts: list[str] = option(
        [],
        "Prompts that attackers may learn with besides instance_prompt, with other rare words or class nouns: "
        '"a photo of t@t person", "a photo of sks man".',
    )
    caption_column: str | None = option(
        None,
        "Attackers may also learn with a caption for each photo, from this column of metadata.jsonl beside the photos. "
        'With text, a line is {"file_name": "1.jpg", "text": "a photo of sks person, smiling"}; .txt reads a text file '
        "beside each photo. Captions count as one more of instance_prompts. By default no captions are read.",
    )
    learning_rates: list[float] = option([], "Learning rates to draw from instead of l2p.learning_rate.", above=0)
    inner_steps: list[int] = option(
        [],
        "Numbers of steps to draw from instead of l2p.inner_steps; with a pool, instead of pool.depth.",
        at_least=1,
    )
    photos: list[str] = option(
        [],
        "What attackers may do to the photos before training, as purifiers with their options: "
        '"flip", "crop:margin=0.1", "jpeg:quality=50". Untreated photos stay among the choices.',
        holds="spec",
    )
    prior_loss_weights: list[float] = option(
        [],
        "Weights to draw from instead of l2p.prior_loss_weight; 0 is an attacker without prior preservation.",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """A pool of attackers that go on training over many outer steps, in place of a new attacker in each.

    It shows the defender attackers who have trained far longer than inner_steps. The paper has no pool.
    """

    size: int = option(
        0,
        "Attackers in the pool that learn protected people. Each holds its offset from theta and two moments, three "
        "copies of the weights. 0 turns the pool off: Algorithm 1, a new attacker in every outer step.",
        at_least=0,
        common="simulated attackers",
    )
    depth: int = option(
        240,
        "Steps after which an attacker of the pool starts again from theta. With more steps, attackers are more like "
        "real ones, but fewer of them fit into a run.",
        at_least=1,
    )
    stride: int = option(
        2, "Steps that an attacker of the pool takes in its turn. One attacker has its turn per outer step.", at_least=1
    )
    benign_size: int = option(
        0,
        "Benign attackers in the pool. They learn people who consented, and theta is trained to help them, so that "
        "people who are not protected can still be learned. Each costs as much memory as any attacker of the pool.",
        at_least=0,
    )
    benign_weight: float = option(
        1.0,
        "Weight of the gradient of a benign attacker's loss L_per, taken at the attacker's weights. Higher values keep "
        "other people learnable and protect less.",
        at_least=0,
    )
    benign_data_dir: str | None = option(
        None,
        "Folder of the photos of people who consented, <id>/*.jpg, none of them protected. Required if benign_size is "
        "above 0.",
        holds="folder",
    )

    def __post_init__(self) -> None:
        if self.benign_size and not self.benign_data_dir:
            raise UserError("pool.benign_size needs people: name their folder with pool.benign_data_dir")
        if self.benign_size and not self.size:
            raise UserError("pool.benign_size is set but pool.size is 0; a pool needs attackers of the protected too")
