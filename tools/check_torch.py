"""Check the built ops in the torch that runs this file: opcheck, and values against torch's own convolutions."""

from __future__ import annotations

import torch

from sturdy.functional import push_pull_conv2d
from sturdy.functional.pushpull import composite


def main() -> None:
    """Raise an AssertionError if anything differs; print one line otherwise."""
    torch.manual_seed(0)
    image = torch.randn(2, 4, 9, 11, requires_grad=True)
    weight = torch.randn(6, 2, 3, 3, requires_grad=True)
    inhibition = torch.rand(6, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    options = ([2, 1], [1, 1, 0, 2], [1, 2], 2, [3, 3])
    op = torch.ops.sturdy.push_pull_conv2d.default
    for keep_push in (True, False):
        torch.library.opcheck(op, (image, weight, inhibition, 1.0, bias, *options, keep_push))

    arguments = dict(stride=(2, 1), padding=1, groups=2, avg_kernel_size=3)
    tensors = (image, weight, inhibition, bias)
    out = push_pull_conv2d(*tensors, **arguments)
    wanted = composite(image, weight, inhibition, 1.0, bias, (2, 1), (1, 1, 1, 1), (1, 1), 2, (3, 3))
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, tensors, direction), torch.autograd.grad(wanted, tensors, direction), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(lambda x: push_pull_conv2d(x, weight, inhibition, bias, **arguments), backend="aot_eager")
    torch.testing.assert_close(compiled(image), out, rtol=0, atol=0)
    print(f"torch {torch.__version__}: opcheck passed, forward, backward and compiled call agree with torch")


if __name__ == "__main__":
    main()
