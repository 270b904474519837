"""Second derivatives of a case, for backends on which finite differences are too slow."""

import torch

from kdistill.testing.tolerance import assert_close_enough, to_float64


def second_gradients(case, function, inputs):
    """Return the gradients of <gradient, direction> in the inputs and in the cotangent."""
    generator = torch.Generator().manual_seed(1)

    def randn_like(x):
        return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)

    leaves = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    wanted = [leaves[i].requires_grad_() for i in case.differentiable]
    out = function(*leaves)
    cotangent = randn_like(out).requires_grad_()
    grads = torch.autograd.grad(out, wanted, cotangent, create_graph=True)
    along = sum((g * randn_like(g)).sum() for g in grads)
    return torch.autograd.grad(along, [*wanted, cotangent], materialize_grads=True)


def check_second_order(case, inputs, shape):
    got, eager = (
        second_gradients(case, case.op, inputs),
        second_gradients(case, case.reference, inputs),
    )
    truth = second_gradients(case, case.reference, to_float64(inputs))
    for i, (ours, same, true) in enumerate(zip(got, eager, truth, strict=True)):
        assert_close_enough(
            ours, same, true, case.depth(shape), f"{case.name} {shape}: second gradient {i}"
        )
