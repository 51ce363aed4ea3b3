"""What an attacker's search chooses from: the options of one trial, as the text that makes the attack.

Rates, batches and priors are relative to the audit's own attacks, so the same space suits every model. What the options
of these attacks do not allow is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apdm.audit.inputs.attack_factory import AttackFactory, misfit
from apdm.audit.results.budgets import samples_per_step
from apdm.core.errors import UserError
from apdm.families import Family

OPERATORS = ("dreambooth", "lora")
RATE_FACTORS = (0.1, 10.0)  # of the operator's own rate
BATCH_FACTORS = (0.25, 0.5, 1, 2, 4)  # of the nominal batch
PRIOR_WEIGHTS = (0.0, 0.3, 1.0)
RANKS = (4, 16, 32, 128)
TARGETS = ("attention", "all")
# How the loss is weighted over the noise levels, in place of the attack's own way.
WEIGHTINGS: Mapping[str, Mapping[str, str]] = {
    "own": {},
    "min-snr": {"snr_gamma": "5"},
    "x0": {"loss_space": "x0"},
    "noisy": {"min_timestep": "0.6"},
    "clear": {"max_timestep": "0.6"},
}
OPTIMIZERS = ("adamw", "muon")  # whose rates are alike
# Which model answers the empty prompt of guidance, by the attack around the operator that draws so.
EMPTY_PROMPTS: Mapping[str, str | None] = {"attacked": None, "received": "release_unconditional"}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How an attacker searches.

    Attributes:
        trials: trials on each model.
        samples: pictures that a trial may train on, class pictures included. None: those of the nominal attack.
        min_face_rate: a measured point counts only if at least this share of its pictures shows a face.
        people: number of protected people with whose photos the attacker searches, at most.
    """

    trials: int
    samples: int | None
    min_face_rate: float
    people: int


class SearchSpace:
    """The attacks that a search chooses from, each with the same budget.

    Args:
        factory: makes the audit's attacks, whose options the space lies around.
        samples: pictures that a trial may train on. None: those of the nominal attack.
        base: the base model. Ways of drawing that it does not have are left out; None: all are kept.
    """

    def __init__(self, factory: AttackFactory, samples: int | None, base: Family | None = None) -> None:
        self.own: dict[str, Any] = {name: factory.make(name, seed=0) for name in OPERATORS}
        nominal = self.own["dreambooth"]
        own_samples = nominal.max_train_steps * (samples_per_step(nominal.params()) or 1)
        self.samples = samples or own_samples
        batches = sorted({max(1, round(nominal.train_batch_size * factor)) for factor in BATCH_FACTORS})
        # A single step with as many class pictures must not cost more than the budget.
        self.batches = [size for size in batches if 2 * size <= self.samples or size == nominal.train_batch_size]
        self.priors = sorted({*PRIOR_WEIGHTS, nominal.prior_loss_weight})
        self.weightings = [name for name, options in WEIGHTINGS.items() if _all_take(factory, options)]
        # The rates of other optimizers lie elsewhere, so an attack that has one keeps it.
        optimizers = {attack.optimizer for attack in self.own.values()}
        free = optimizers <= set(OPTIMIZERS)
        self.optimizers = tuple(name for name in OPTIMIZERS if free and _all_take(factory, {"optimizer": name}))
        self.empty_prompts = tuple(name for name, spec in EMPTY_PROMPTS.items() if _fits(factory, spec, base))
        self.nominal = {
            "operator": "dreambooth",
            "dreambooth learning_rate": 1.0,
            "train_batch_size": nominal.train_batch_size,
            "prior_loss_weight": nominal.prior_loss_weight,
            "weighting": "own",
            "optimizer": nominal.optimizer,
            "empty_prompt": "attacked",
        }

    def spec(self, trial: Any) -> str:
        """Ask a trial of optuna for values, and return its attack as a text."""
        operator = trial.suggest_categorical("operator", OPERATORS)
        attack = self.own[operator]
        factor = trial.suggest_float(f"{operator} learning_rate", *RATE_FACTORS, log=True)
        chosen: dict[str, Any] = {
            "learning_rate": f"{attack.learning_rate * factor:.3g}",
            "train_batch_size": trial.suggest_categorical("train_batch_size", self.batches),
            "prior_loss_weight": trial.suggest_categorical("prior_loss_weight", self.priors),
        }
        if operator == "lora":
            chosen |= {"rank": trial.suggest_categorical("rank", RANKS)}
            chosen |= {"target": trial.suggest_categorical("target", TARGETS)}
        chosen |= WEIGHTINGS[trial.suggest_categorical("weighting", self.weightings)]
        if self.optimizers:
            chosen["optimizer"] = trial.suggest_categorical("optimizer", self.optimizers)
        steps = self.samples // (samples_per_step({**attack.params(), **chosen}) or 1)
        chosen["max_train_steps"] = max(1, steps)
        around = EMPTY_PROMPTS[trial.suggest_categorical("empty_prompt", self.empty_prompts)]
        if around is not None:
            operator, chosen = around, {"attack": operator, **chosen}
        return f"{operator}:{','.join(f'{name}={value}' for name, value in chosen.items())}"


def _fits(factory: AttackFactory, spec: str | None, base: Family | None) -> bool:
    """Whether the base model can draw as an attack draws."""
    return spec is None or base is None or misfit(factory.make(spec, seed=0), base) is None


def _all_take(factory: AttackFactory, options: Mapping[str, str]) -> bool:
    """Whether these options go with the audit's own options of every operator."""
    text = ",".join(f"{name}={value}" for name, value in options.items())
    try:
        for operator in OPERATORS:
            factory.make(f"{operator}:{text}", seed=0)
    except UserError:
        return False
    return True
