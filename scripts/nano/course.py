"""The plain training loop: stages by the clock or by updates, with a file to go on from."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


def log(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each update (Jordan et al. 2024), in float32: PyTorch's own multiplies in
    bfloat16, which takes 40 times as long on processors that have no instructions for it."""

    COEFFICIENTS, STEPS, MOMENTUM = (3.4445, -4.775, 2.0315), 4, 0.95

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {"lr": 0.02, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - self.MOMENTUM)
                update = self.orthogonal(parameter.grad.lerp(momentum, self.MOMENTUM))
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    @classmethod
    def orthogonal(cls, matrix: Tensor) -> Tensor:
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        a, b, c = cls.COEFFICIENTS
        for _ in range(cls.STEPS):
            square = x @ x.T
            x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


@dataclass(frozen=True)
class StageLength:
    """Of a stage: by the clock, or in updates."""

    seconds: float = math.inf
    steps: float = math.inf

    def share(self, seconds: float, steps: int) -> float:
        """How much of it is over, in [0, 1]."""
        return min(1.0, max(seconds / self.seconds if self.seconds else 1.0, steps / self.steps if self.steps else 1.0))

    def __bool__(self) -> bool:
        return self.share(0.0, 0) < 1


class Course:
    """What has been trained so far, in a file that is replaced as a whole: a run that ends early goes on where it was.

    Args:
        file: where the course stands; outside the repository.
        modules: all that is trained, by name.
    """

    def __init__(self, file: Path, modules: dict[str, nn.Module]) -> None:
        self.file, self.modules = file, modules
        self.done: dict[str, int] = {}
        """Updates of each stage that is over."""
        self.within: dict | None = None
        """Of the stage that was under way: its name, seconds, steps and optimizers' states."""
        self.extra: dict[str, Tensor] = {}

    def load(self) -> bool:
        """Go on from the file; False: there is none."""
        if not self.file.exists():
            return False
        state = torch.load(self.file, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.done, self.within, self.extra = state["done"], state["within"], state["extra"]
        return True

    def save(self, within: dict | None = None) -> None:
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "done": self.done,
            "within": within,
            "extra": self.extra,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)

    def run_stage(
        self,
        name: str,
        rates: dict[float, list[nn.Parameter]],
        loss_of: Callable[[float], tuple[Tensor, dict[str, float]]],
        length: StageLength,
        check: Callable[[], None] = lambda: None,
        matrices: Sequence[nn.Parameter] = (),
        matrix_rate: float = 0.02,
    ) -> None:
        """AdamW, each group of parameters at its rate, and Muon (Jordan et al. 2024) for `matrices`; warm-up over the first 3 %, then
        cosine to zero. A stage that is over is left out; one that was under way goes on."""
        if name in self.done:
            return
        groups = []
        for rate, members in rates.items():
            groups.append({"params": [p for p in members if p.ndim > 1], "weight_decay": 0.02, "rate": rate})
            groups.append({"params": [p for p in members if p.ndim <= 1], "weight_decay": 0.0, "rate": rate})
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)]
        if matrices:
            group = {"params": list(matrices), "weight_decay": 0.02, "rate": matrix_rate}
            optimizers.append(Muon([group]))
        parameters = [
            p for members in rates.values() for p in members
        ]  # Muon's updates are of one size whatever the gradients'
        seconds_before, steps = 0.0, 0
        if self.within and self.within["name"] == name:
            seconds_before, steps = self.within["seconds"], self.within["steps"]
            for optimizer, state in zip(optimizers, self.within["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        begin = last_log = last_save = time.monotonic()
        notes_since_log: dict[str, list[float]] = defaultdict(list)

        def seconds() -> float:
            return seconds_before + time.monotonic() - begin

        while (share := length.share(seconds(), steps)) < 1:
            factor = min(1.0, share / 0.03 + 0.01) * (0.5 + 0.5 * math.cos(math.pi * share))
            loss, notes = loss_of(share)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * factor
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            steps += 1
            for key, value in {"loss": loss.item(), **notes}.items():
                notes_since_log[key].append(value)
            if time.monotonic() - last_log > 60:
                text = ", ".join(f"{key} {sum(values) / len(values):.3f}" for key, values in notes_since_log.items())
                log(f"{name}: {share:.0%}, step {steps}, {text}")
                notes_since_log.clear()
                check()
                last_log = time.monotonic()
            if time.monotonic() - last_save > 240:
                states = [optimizer.state_dict() for optimizer in optimizers]
                self.save({"name": name, "seconds": seconds(), "steps": steps, "optimizers": states})
                last_save = time.monotonic()
        self.done[name], self.within = steps, None
        self.save()


def at_most_every(check: Callable[[], None], seconds: float = 290) -> Callable[[], None]:
    """Called often, the check is made only when so much time has passed since the last."""
    last_check = time.monotonic()

    def check_if_due() -> None:
        nonlocal last_check
        if time.monotonic() - last_check > seconds:
            check()
            last_check = time.monotonic()

    return check_if_due
