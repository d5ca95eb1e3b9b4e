"""Two-route normalisation: which statistics a batch meets, one pass for both, conversion, state dicts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from sturdy.nn import DualBatchNorm2d, DuBIN, convert_dual_bn, route
from support import random

F64 = torch.float64


def small(channels: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, dtype=F64), nn.BatchNorm2d(channels, dtype=F64), nn.ReLU(),
        nn.Conv2d(channels, 4, 3, dtype=F64), nn.BatchNorm2d(4, dtype=F64), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def statistics(model: nn.Module, name: str) -> list[Tensor]:
    layers = [layer for layer in model.modules() if isinstance(layer, DualBatchNorm2d)]
    return [t.clone() for layer in layers for t in getattr(layer, name).buffers()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- one layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DualBatchNorm2d, DuBIN])
@pytest.mark.parametrize("channels", [2, 5, 8])
def test_values(kind, channels):
    """The definition, written out; an odd channel goes to the batch normalisation."""
    layer, x = kind(channels, dtype=F64), random((4, channels, 3, 5), 1, F64)
    half = channels // 2 if kind is DuBIN else 0
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    bn = layer.BN if kind is DuBIN else layer
    for name in ("aux", "main"):
        part = getattr(bn, name)
        over_batch = (x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        wanted = over_batch[:, half:] * part.weight[:, None, None] + part.bias[:, None, None]
        if half:
            first = x[:, :half]
            own = (first - first.mean((2, 3), True)) / (first.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            wanted = torch.cat((own * layer.IN.weight[:, None, None] + layer.IN.bias[:, None, None], wanted), 1)
        torch.testing.assert_close(layer(x, route=name), wanted)


def test_each_route_has_statistics_of_its_own():
    layer, x = DualBatchNorm2d(3), random((4, 3, 5, 5), 1)
    before = statistics(layer, "main")
    layer(x, route="aux")
    assert same(statistics(layer, "main"), before) and not same(statistics(layer, "aux"), before)
    before = statistics(layer, "aux")
    layer(x + 1)
    assert same(statistics(layer, "aux"), before)
    layer.eval()
    assert torch.equal(layer(x), layer.main(x)) and not torch.equal(layer(x), layer.aux(x))
    with route(layer, "aux"):
        assert torch.equal(layer(x), layer.aux(x))  # who asks for it gets it, in evaluation too


def test_argument_wins_over_the_context():
    layer, x = DualBatchNorm2d(3).eval(), random((2, 3, 4, 4), 1)
    layer.aux.bias.data.fill_(7)
    with route(layer, "aux"):
        assert torch.equal(layer(x, route="main"), layer.main(x))


def test_errors():
    layer, x = DualBatchNorm2d(3), random((3, 3, 4, 4), 1)
    with pytest.raises(ValueError, match="does not divide among the 2 routes"):
        layer(x, route=("main", "aux"))
    with pytest.raises(ValueError, match=r'"main" or "aux", got \'A\''):
        layer(x, route="A")
    for bad in ("both", (), ("main", "other")):
        with pytest.raises(ValueError, match="route: must be"), route(layer, bad):
            pass
    with pytest.raises(ValueError, match="at least 2"):
        DuBIN(1)
    for kind in (DualBatchNorm2d, DuBIN):
        with pytest.raises(TypeError, match=r"nn\.BatchNorm2d itself"):
            kind.from_batch_norm(nn.SyncBatchNorm(4))


def test_options_of_batch_norm():
    x = random((4, 3, 4, 4), 1)
    plain = DualBatchNorm2d(3, affine=False, track_running_stats=False)
    assert list(plain.state_dict()) == [] and plain(x).shape == x.shape
    average = DualBatchNorm2d(3, momentum=None)
    average(x)
    torch.testing.assert_close(average.main.running_mean, x.mean((0, 2, 3)))
    norm = nn.BatchNorm2d(3, eps=0.5, momentum=None, affine=False).eval()
    dual = DualBatchNorm2d.from_batch_norm(norm)
    assert dual.main is norm and dual.aux.eps == 0.5 and dual.aux.momentum is None and not dual.training


# ---- routes of a model -----------------------------------------------------------------------------------------------


def test_contexts_nest_and_survive_exceptions():
    model = convert_dual_bn(small(), ibn=None)
    first, second = (layer for layer in model if isinstance(layer, DualBatchNorm2d))
    with route(model, "aux") as same_model:
        assert same_model is model
        with route(first, ["main", "aux"]):
            assert first.route == ("main", "aux") and second.route == "aux"
            with pytest.raises(RuntimeError, match="stop"), route(model, "main"):
                raise RuntimeError("stop")
            assert first.route == ("main", "aux")
        assert first.route == second.route == "aux"
    assert first.route == second.route == "main"


@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("routes", [("main", "aux"), ("aux", "main"), ("main", "main", "aux")], ids=str)
def test_one_pass_is_several(routes, ibn):
    model = nn.Sequential(DuBIN(3, dtype=F64) if ibn else nn.Identity(), *convert_dual_bn(small(), ibn=None))
    twin = copy.deepcopy(model)
    parts = [random((3, 3, 8, 8), seed, F64) for seed in range(len(routes))]
    with route(model, routes):
        together = model(torch.cat(parts))
    apart = []
    for part, name in zip(parts, routes, strict=True):
        with route(twin, name):
            apart.append(twin(part))
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-12, atol=1e-12)
    weights = torch.arange(together.numel(), dtype=F64).reshape(together.shape)
    (together * weights).sum().backward()
    (torch.cat(apart) * weights).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-10)
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_checkpointing_inside_the_context():
    from torch.utils.checkpoint import checkpoint

    model, x = convert_dual_bn(small(), ibn=None), random((4, 3, 8, 8), 1, F64)
    model[1].aux.weight.data.uniform_(1, 2)
    twin = copy.deepcopy(model)
    with route(model, "aux"):
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
    with route(twin, "aux"):
        twin(x).square().sum().backward()
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)
    assert model[1].main.weight.grad is None


def test_compiles_to_one_graph_for_each_route():
    torch._dynamo.reset()
    model, x = convert_dual_bn(small(), ibn=None).eval(), random((4, 3, 8, 8), 1, F64)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for where in ("main", "aux", ("main", "aux"), "main"):
        with route(model, where):
            torch.testing.assert_close(compiled(x), model(x))
    with route(model, "aux"):
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x))
    torch._dynamo.reset()


# ---- conversion ------------------------------------------------------------------------------------------------------


def test_converted_model_computes_the_same_on_main():
    plain, x = small(), random((4, 3, 8, 8), 1, F64)
    plain(x)
    twin = copy.deepcopy(plain)
    norm = twin[1]
    dual = convert_dual_bn(twin, ibn=None)
    assert dual is twin and dual[1].main is norm and dual[1].main.weight is norm.weight
    assert torch.equal(dual.eval()(x), plain.eval()(x))
    assert torch.equal(dual.train()(x), plain.train()(x))
    with route(dual.eval(), "aux"):
        dual(x)
    assert [type(layer) for layer in dual].count(DualBatchNorm2d) == 2


def test_conversion_touches_exact_types_once():
    class Own(nn.BatchNorm2d):
        pass

    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(shared, Own(3), nn.SyncBatchNorm(3), nn.Sequential(shared), DualBatchNorm2d(3))
    inside = model[4].main
    convert_dual_bn(model, ibn=None)
    assert model[0] is model[3][0] and type(model[0]) is DualBatchNorm2d
    assert type(model[1]) is Own and type(model[2]) is nn.SyncBatchNorm and model[4].main is inside
    with pytest.warns(UserWarning, match=r"no nn\.BatchNorm2d"):
        convert_dual_bn(model, ibn=None)
    assert type(convert_dual_bn(nn.BatchNorm2d(3), ibn=None)) is DualBatchNorm2d


def test_resnet_of_torchvision():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = convert_dual_bn(models.resnet50(num_classes=10))
    for i, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        for block in stage:
            assert type(block.bn1) is (DuBIN if i < 3 else DualBatchNorm2d)
            assert type(block.bn2) is type(block.bn3) is DualBatchNorm2d
    assert type(model.bn1) is type(model.layer1[0].downsample[1]) is DualBatchNorm2d
    assert not any(type(m) is nn.BatchNorm2d and not n.endswith(("main", "aux")) for n, m in model.named_modules())
    with route(model, ("main", "aux")):
        assert model(torch.rand(4, 3, 32, 32)).shape == (4, 10)
    with pytest.raises(ValueError, match=r"4 entries, but Sequential has 0 stages"):
        convert_dual_bn(small())
    with pytest.raises(ValueError, match='"a" or None'):
        convert_dual_bn(models.resnet18(), ibn=("b",))
    with pytest.raises(KeyError, match="stage9"):
        convert_dual_bn(models.resnet18(), ibn=("a",), stages=["stage9"])
    partly = convert_dual_bn(models.resnet18(), ibn=("a", None), stages=["layer2", "layer1"])
    assert type(partly.layer2[0].bn1) is DuBIN and type(partly.layer1[0].bn1) is DualBatchNorm2d


def test_instance_part_starts_from_the_batch_norm():
    norm = nn.BatchNorm2d(5)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.uniform_(1, 2)
    norm.num_batches_tracked.fill_(3)
    layer = DuBIN.from_batch_norm(norm)
    for name in ("weight", "bias"):
        whole = torch.cat((getattr(layer.IN, name), getattr(layer.BN.aux, name)))
        assert torch.equal(whole, getattr(norm, name))
    assert torch.equal(layer.BN.main.running_var, norm.running_var[2:]) and layer.BN.aux.num_batches_tracked == 3
    x = random((2, 5, 3, 3), 1)
    torch.testing.assert_close(layer(x)[:, 2:], norm(x)[:, 2:])


# ---- state dicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_plain_state_dict_loads_strictly(assign):
    plain = small()
    plain(random((4, 3, 8, 8), 1, F64))
    dual = convert_dual_bn(small(), ibn=None)
    kept = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    dual.load_state_dict(plain.state_dict(), strict=True, assign=assign)
    for part in (dual[1].main, dual[1].aux):
        assert torch.equal(part.running_mean, plain[1].running_mean)
    assert dual[1].main.weight is not dual[1].aux.weight
    assert dual[1].main.weight.data_ptr() != dual[1].aux.weight.data_ptr()
    assert all(torch.equal(kept[name], tensor) for name, tensor in plain.state_dict().items())
    with pytest.raises(RuntimeError, match="running_mean"):
        broken = plain.state_dict()
        del broken["1.running_mean"]
        convert_dual_bn(small(), ibn=None).load_state_dict(broken)


def test_own_state_dict_and_pickle():
    dual = convert_dual_bn(small(), ibn=None)
    dual[1].aux.bias.data.fill_(3)
    twin = convert_dual_bn(small(), ibn=None)
    twin.load_state_dict(dual.state_dict())
    assert twin[1].aux.bias[0] == 3 and twin[1].main.bias[0] == 0
    assert pickle.loads(pickle.dumps(dual))[1].aux.bias[0] == 3
    ibn_net = {"IN.weight": torch.ones(2), "IN.bias": torch.ones(2)}
    ibn_net |= {f"BN.{name}": tensor for name, tensor in nn.BatchNorm2d(3).state_dict().items()}
    DuBIN(5).load_state_dict(ibn_net, strict=True)
