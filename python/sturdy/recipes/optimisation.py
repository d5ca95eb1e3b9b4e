"""Optimizers and courses of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sturdy.recipes.settings import Settings

# ReduceLROnPlateau steps once an epoch and looks at the validation loss; all others step with each update.
Scheduler = torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a run; without ``norm_weight_decay`` the parameters of normalisations do not decay."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if not settings.norm_weight_decay:
        norms = _norm_parameters(model)
        chosen = {id(parameter) for parameter in norms}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        groups = [{"params": rest}, {"params": norms, "weight_decay": 0.0}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
    betas = (settings.momentum, settings.beta2)
    return torch.optim.AdamW(groups, settings.lr, betas, weight_decay=settings.weight_decay)


def _norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    from sturdy.nn import ScaleNorm

    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, ScaleNorm)
    found = [p for module in model.modules() if isinstance(module, norms) for p in module.parameters(recurse=False)]
    return list(dict.fromkeys(found))


def make_scheduler(settings: Settings, optimizer: torch.optim.Optimizer, total_steps: int) -> Scheduler:
    """The course of the learning rate of a run.

    ``cosine``: from ``lr`` by half a cosine down to ``min_lr``. ``onecycle``: one cycle with ``lr`` as its peak and the
    momentum cycled inversely. ``steps``: a tenth after each third of the epochs. ``plateau``: a tenth when the
    validation loss has not fallen for 10 epochs. ``linear``: in a straight line down to ``min_lr``. ``cosine``,
    ``linear`` and ``steps`` rise linearly over ``warmup_epochs`` first, from ``warmup_start`` times ``lr``; the cosine
    and the line take the epochs that are left.
    """
    schedules = torch.optim.lr_scheduler
    if settings.schedule == "onecycle":
        return schedules.OneCycleLR(
            optimizer,
            max_lr=settings.lr,
            total_steps=total_steps,
            div_factor=settings.div_factor,
            final_div_factor=settings.final_div_factor,
            pct_start=settings.pct_start,
        )
    if settings.schedule == "plateau":
        return schedules.ReduceLROnPlateau(optimizer, factor=0.1, patience=10, min_lr=settings.min_lr)
    if settings.schedule == "cosine" and settings.warmup_epochs == 0:
        return schedules.CosineAnnealingLR(optimizer, total_steps, eta_min=settings.min_lr)
    per_epoch = total_steps // settings.epochs
    rising = settings.warmup_epochs * per_epoch
    floor = settings.min_lr / settings.lr

    def factor(step: int) -> float:
        warm = 1.0
        if step < rising:
            warm = settings.warmup_start + (1 - settings.warmup_start) * step / rising
        if settings.schedule == "steps":
            return warm * 0.1 ** sum(step >= part * settings.epochs // 3 * per_epoch for part in (1, 2))
        done = max(0, min(step, total_steps) - rising) / max(1, total_steps - rising)
        left = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return warm * (floor + (1 - floor) * left)

    return schedules.LambdaLR(optimizer, factor)
