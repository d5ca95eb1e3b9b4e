"""Auxiliary cross-entropy and three-way consistency, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sturdy.losses import ACE, ThreeWayJSD
from sturdy.nn import convert_dual_bn, route
from support import random

F64 = torch.float64


def logits(seed: int, count: int = 6, classes: int = 4, dtype: torch.dtype = F64) -> Tensor:
    return random((count, classes), seed, F64).to(dtype)


def soft(seed: int) -> Tensor:
    """Targets as MixUp makes them, each with its own partner and weight."""
    generator = torch.Generator().manual_seed(seed)
    classes = F.one_hot(torch.arange(6) % 4, 4).to(F64)
    weight = torch.rand((6, 1), generator=generator, dtype=F64)
    return weight * classes + (1 - weight) * classes[torch.randperm(6, generator=generator)]


def mean_log_loss(x: Tensor, target: Tensor) -> Tensor:
    return -(target * (x - x.logsumexp(1, keepdim=True))).sum(1).mean()


def test_ace_is_half_of_each():
    labels = torch.arange(6) % 4
    hard = F.one_hot(labels, 4).to(F64)
    wanted = (mean_log_loss(logits(1), hard) + mean_log_loss(logits(2), hard)) / 2
    torch.testing.assert_close(ACE()(logits(1), logits(2), labels), wanted)
    first, second = soft(3), soft(4)
    wanted = (mean_log_loss(logits(1), first) + mean_log_loss(logits(2), second)) / 2
    torch.testing.assert_close(ACE()(logits(1), logits(2), first, second), wanted)
    smooth = 0.9 * hard + 0.1 / 4
    wanted = (mean_log_loss(logits(1), smooth) + mean_log_loss(logits(2), smooth)) / 2
    torch.testing.assert_close(ACE(label_smoothing=0.1)(logits(1), logits(2), labels), wanted)


def test_ace_over_a_model_is_two_forward_passes():
    """Loss, gradients and running statistics of one pass equal those of two; main never sees the auxiliary images."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(6, 4),
    ).double()  # fmt: skip
    convert_dual_bn(model, ibn=None)
    x, y = random((6, 1, 8, 8), 1, F64), torch.arange(6) % 4
    augmented = x + 3
    results = []
    for one_pass in (True, False):
        model.load_state_dict({**model.state_dict(), "1.main.running_mean": torch.zeros(6, dtype=F64),
                               "1.aux.running_mean": torch.zeros(6, dtype=F64)})  # fmt: skip
        model.zero_grad()
        if one_pass:
            with route(model, ("main", "aux")):
                main, aux = model(torch.cat((x, augmented))).chunk(2)
        else:
            main = model(x)
            with route(model, "aux"):
                aux = model(augmented)
        loss = ACE()(main, aux, y)
        loss.backward()
        means = [model[1].main.running_mean.clone(), model[1].aux.running_mean.clone()]
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters()), *means])
        with torch.no_grad():
            torch.testing.assert_close(means[0], 0.1 * model[0](x).mean((0, 2, 3)))
            torch.testing.assert_close(means[1], 0.1 * model[0](augmented).mean((0, 2, 3)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_jsd_of_identical_logits_is_zero():
    labels = torch.arange(6) % 4
    for dtype in (torch.float32, F64):
        x = logits(1, dtype=dtype)
        loss = ThreeWayJSD(100.0)(x, x.clone(), x.clone(), labels)
        torch.testing.assert_close(loss, F.cross_entropy(x, labels), rtol=0, atol=1e-4 if dtype != F64 else 1e-12)


def test_jsd_direction_on_two_classes():
    """KL(p || m), not KL(m || p): p_1 = (a, 1 - a), p_2 = p_3 = (b, 1 - b)."""
    a, b = 0.9, 0.3
    views = [torch.tensor([[math.log(v / (1 - v)), 0.0]], dtype=F64) for v in (a, b, b)]
    m = (a + 2 * b) / 3
    kl = [v * math.log(v / m) + (1 - v) * math.log((1 - v) / (1 - m)) for v in (a, b, b)]
    reverse = [m * math.log(m / v) + (1 - m) * math.log((1 - m) / (1 - v)) for v in (a, b, b)]
    wanted = -math.log(a) + 5.0 / 3 * sum(kl)
    assert abs(sum(kl) - sum(reverse)) > 0.01
    assert ThreeWayJSD(5.0)(*views, torch.tensor([0])).item() == pytest.approx(wanted, rel=1e-12)


def test_jsd_is_a_mean_over_images_and_clamps():
    labels = torch.arange(6) % 4
    views = [logits(seed) for seed in (1, 2, 3)]
    single = [ThreeWayJSD(2.0)(*(v[i : i + 1] for v in views), labels[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(ThreeWayJSD(2.0)(*views, labels), torch.stack(single).mean())
    targets = soft(1)
    difference = ThreeWayJSD(2.0)(*views, targets) - ThreeWayJSD(2.0)(*views, labels)
    torch.testing.assert_close(difference, mean_log_loss(views[0], targets) - F.cross_entropy(views[0], labels))
    far = [torch.tensor([[200.0, 0.0]]) * sign for sign in (1, 1, -1)]
    assert torch.isfinite(ThreeWayJSD(1.0)(*far, torch.tensor([0])))
    never = torch.tensor([[0.0, -math.inf]]).requires_grad_()
    loss = ThreeWayJSD(1.0)(never, never, never, torch.tensor([0]))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_gradients():
    views = [logits(seed).requires_grad_() for seed in (1, 2, 3)]
    labels = torch.arange(6) % 4
    assert torch.autograd.gradcheck(lambda *v: ThreeWayJSD(3.0)(*v, labels), views)
    assert torch.autograd.gradcheck(lambda *v: ACE()(*v, labels), views[:2])


def test_half_precision_is_computed_in_float32():
    labels = torch.arange(6) % 4
    views = [logits(seed, dtype=torch.float16) for seed in (1, 2, 3)]
    wide = [view.float() for view in views]
    assert torch.equal(ThreeWayJSD()(*views, labels), ThreeWayJSD()(*wide, labels))
    assert torch.equal(ACE()(*views[:2], labels), ACE()(*wide[:2], labels))
    assert torch.equal(ACE()(*wide[:2], soft(1)), ACE()(*wide[:2], soft(1).float()))


def test_errors():
    labels = torch.arange(6) % 4
    with pytest.raises(ValueError, match="lambda_"):
        ThreeWayJSD(-1)
    for loss in (ACE, ThreeWayJSD):
        with pytest.raises(ValueError, match="label_smoothing"):
            loss(label_smoothing=2)
    with pytest.raises(ValueError, match=r"aux must have the shape of clean, \(6, 4\), got \(5, 4\)"):
        ThreeWayJSD()(logits(1), logits(2), logits(3)[:5], labels)
    with pytest.raises(ValueError, match=r"target of aux .*\(6,\) or probabilities \(6, 4\), got shape \(5,\)"):
        ACE()(logits(1), logits(2), labels, labels[:5])
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        ACE()(logits(1)[0], logits(2), labels)
    assert repr(ThreeWayJSD(12)) == "ThreeWayJSD(lambda_=12, label_smoothing=0)"
    assert repr(ACE()) == "ACE(label_smoothing=0)"
