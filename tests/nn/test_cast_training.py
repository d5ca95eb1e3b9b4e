"""CAST modules in what surrounds training: torch.compile, CUDA graphs, several processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sturdy
from sturdy.nn import CASTAttention, CASTEncoder, CASTEncoderLayer
from support import random

ROOT = Path(__file__).resolve().parents[2]


def block(device: str, **options) -> CASTEncoderLayer:
    torch.manual_seed(0)
    options = {"cluster_size": 6, **options}
    return CASTEncoderLayer(16, 2, 3, dim_feedforward=32, dropout=0.0, device=device, **options)


def skip_simt(backend) -> None:
    if backend.name == "simt":
        pytest.skip("the same graph as on the CPU")


def results(model: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.detach().requires_grad_()
    out = model(x, src_key_padding_mask=mask)
    out.square().mean().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("options", [{}, {"method": "sa_topk", "cluster_size": 11, "norm": "batch"}], ids=str)
def test_compiled_for_any_length(backend, options):
    skip_simt(backend)
    torch.compiler.reset()
    eager = block(backend.device, **options)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (13, 20, 31):
        # One graph with a mask and one without; none belongs to a length.
        with torch._dynamo.config.patch(error_on_recompile=tokens > 13):
            x = random((2, tokens, 16), tokens, torch.float32, backend.device)
            for mask in (None, torch.arange(tokens, device=x.device).expand(2, -1) >= 11):
                for got, wanted in zip(results(compiled, x, mask), results(eager, x, mask), strict=True):
                    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_compiled_to_code(backend):
    skip_simt(backend)
    torch.compiler.reset()
    layer = CASTAttention(16, 2, 3, 6, device=backend.device)
    compiled = torch.compile(layer, fullgraph=True)
    x = random((2, 13, 16), 1, torch.float32, backend.device)
    wanted = layer(x)
    torch.testing.assert_close(compiled(x), wanted, rtol=1e-4, atol=1e-5)
    names = dict(layer.named_parameters())
    found = torch.autograd.grad(compiled(x).square().sum(), list(names.values()))
    exact = torch.autograd.grad(wanted.square().sum(), list(names.values()))
    for name, got, expected in zip(names, found, exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_compiled_below_and_above_the_cluster_size(backend):
    skip_simt(backend)
    torch.compiler.reset()
    layer = CASTAttention(16, 2, 3, 6, dropout=0.2, device=backend.device)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    layer.eval()
    for tokens in (5, 6, 7, 19):
        x = random((2, tokens, 16), tokens, torch.float32, backend.device)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
    layer.train()
    assert compiled(x).isfinite().all()
    assert not torch.equal(compiled(x), compiled(x))


@pytest.mark.parametrize("method", ["topk", "sa_topk"])
def test_exported(method):
    layer = CASTAttention(16, 2, 3, 6, method=method).eval()
    dynamic = {"x": {1: torch.export.Dim("tokens", min=8, max=1000)}}
    program = torch.export.export(layer, (torch.randn(2, 40, 16),), dynamic_shapes=dynamic)
    x = torch.randn(2, 17, 16) if method == "topk" else torch.randn(2, 18, 16)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.cuda
def test_captured_in_a_graph():
    if not torch.cuda.is_available() or sturdy.build_info()["cuda"] is None:
        pytest.skip("cuda: no NVIDIA GPU, or a torch or sturdy without CUDA")
    model = CASTEncoder(block("cuda", method="sa_topk", cluster_size=15), 2)
    x = torch.randn(2, 40, 16, device="cuda", requires_grad=True)
    mask = torch.zeros(2, 40, dtype=torch.bool, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.zero_grad(set_to_none=True)
            model(x, src_key_padding_mask=mask).square().mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # any wait for the device would be an error here
        out = model(x, src_key_padding_mask=mask)
        out.square().mean().backward()
    for seed in range(2):
        with torch.no_grad():
            x.copy_(random((2, 40, 16), seed))
            mask.copy_(torch.arange(40) >= torch.tensor([40, 25 + seed])[:, None])
        graph.replay()
        found = [out.clone(), x.grad.clone(), *(p.grad.clone() for p in model.parameters())]
        wanted = results(copy.deepcopy(model), x, mask)
        for got, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from sturdy.nn import CASTEncoder, CASTEncoderLayer

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
torch.manual_seed(0)
model = CASTEncoder(CASTEncoderLayer(8, 2, 3, 4, 16, 0.0), 2)
alone = CASTEncoder(CASTEncoderLayer(8, 2, 3, 4, 16, 0.0), 2)
alone.load_state_dict(model.state_dict())
parallel = DistributedDataParallel(model)  # which waits for a gradient of every parameter
optimizer = torch.optim.SGD(model.parameters(), 0.1)
reference = torch.optim.SGD(alone.parameters(), 0.1)
for step, lengths in enumerate([(12, 12), (12, 3), (3, 3), (9, 15)]):  # 3: ordinary attention there
    torch.manual_seed(step)
    batches = [torch.randn(2, length, 8) for length in lengths]
    optimizer.zero_grad()
    parallel(batches[dist.get_rank()]).square().mean().backward()
    optimizer.step()
    reference.zero_grad()
    sum(alone(batch).square().mean() for batch in batches).div(2).backward()
    reference.step()
for (name, got), wanted in zip(model.named_parameters(), alone.parameters()):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6, msg=lambda text: name + ": " + text)
dist.barrier()
print("same", flush=True)
os._exit(0)  # gloo's threads and the end of the interpreter do not go together
"""


def test_two_processes(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "python"), environment.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), str(rank)],
            **dict(env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            out, error = rank.communicate(timeout=240)
            assert rank.returncode == 0, error
            assert out.strip() == "same"
    finally:
        for rank in ranks:
            rank.kill()
