"""Attackers who draw in another way: other guidance, another sampler, more steps. They train as another attack does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers

from apdm.attacks.staged import Staged
from apdm.config.options import option
from apdm.core.errors import UserError, one_line
from apdm.families import Family
from apdm.families.fit import check_steps


@dataclass(frozen=True, kw_only=True)
class Drawing(Staged):
    """Draw with other options than the audit's. None takes the audit's own, or the pipeline's scheduler.

    Attributes:
        guidance_scale: weight of classifier-free guidance; 1 turns it off.
        num_inference_steps: sampling steps.
        scheduler: name of a class of diffusers, such as DDIMScheduler or EulerDiscreteScheduler.
    """

    guidance_scale: float | None = None
    num_inference_steps: int | None = option(None, at_least=1)
    scheduler: str | None = None

    name: ClassVar[str] = "drawing"

    def __post_init__(self) -> None:
        if self.scheduler is not None and not hasattr(diffusers, self.scheduler):
            raise UserError(f'diffusers has no scheduler "{self.scheduler}"; name a class such as DDIMScheduler')

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return f"{self.attack.assumes}; drawn with options of the attacker's own"

    def drawn(self, attacked: Family, received: Family) -> Family:
        """The attacked model with these options in place of the audit's; see `Staged.drawn`."""
        given: dict[str, Any] = {
            "guidance_scale": self.guidance_scale,
            "num_inference_steps": self.num_inference_steps,
        }
        changed = attacked.with_drawing(**{name: value for name, value in given.items() if value is not None})
        if self.scheduler is not None:
            changed = self._with_scheduler(changed, self.scheduler)
        check_steps(changed, {"num_inference_steps": self.num_inference_steps or 1})
        return changed

    def _with_scheduler(self, attacked: Family, name: str) -> Family:
        scheduler = attacked.pipeline.scheduler
        fitting = {cls.__name__: cls for cls in scheduler.compatibles}
        try:
            if name in fitting:
                return attacked.replace(scheduler=fitting[name].from_config(scheduler.config))
            why = f"does not fit {attacked.name}"
        except ImportError as error:
            problem = one_line(error)
            raise UserError(f"scheduler={name} needs a package that is not installed: {problem}") from None
        except UserError as error:  # diffusers counts some among the compatible ones that draw otherwise
            why = f"does not fit {attacked.name} ({str(error).partition(': ')[2].partition(';')[0]})"
        others = ", ".join(sorted(fitting.keys() - {name})) or type(scheduler).__name__
        raise UserError(f"scheduler={name} {why}; there are {others}")
