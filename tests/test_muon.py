"""Muon: against PyTorch's own, by what singular values must become, and one step by hand."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bookformer.muon import COEFFICIENTS, STEPS, Muon, orthogonalised

SHAPES = [(8, 8), (16, 6), (6, 16), (1, 5)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    x = torch.randn(shape) * 1000
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    found = orthogonalised(x)
    values = s / s.norm()
    for _ in range(STEPS):
        a, b, c = COEFFICIENTS
        values = a * values + b * values**3 + c * values**5
    assert_close(found, u @ values.diag() @ v, atol=1e-4, rtol=0)
    assert 0.6 < values.min() <= values.max() < 1.25


def test_a_stack_of_matrices_is_each_by_itself():
    x = torch.randn(3, 5, 4)
    assert_close(orthogonalised(x), torch.stack([orthogonalised(one) for one in x]))


def test_nothing_has_no_direction():
    assert torch.equal(orthogonalised(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_pytorchs_muon_to_the_rounding_of_bfloat16(shape):
    """Five steps, with weight decay; PyTorch's momentum is a sum where ours is a mean, which the norm cancels."""
    first = torch.randn(shape)
    ours, theirs = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    rates = [0.1, 0.2, 0.3, 0.2, 0.1]
    mine = Muon([ours], 0.1, weight_decay=0.3, momentum=0.8)
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.3, momentum=0.8, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for rate in rates:
        grad = torch.randn(shape)
        for p, optimizer in ((ours, mine), (theirs, reference)):
            p.grad = grad.clone()
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    moved = (theirs - first).detach().norm()
    assert (ours - theirs).detach().norm() < 0.02 * moved


def test_two_steps_by_hand():
    """A matrix of one number: only signs, scale, decay and momentum are left."""
    p = nn.Parameter(torch.tensor([[2.0]]))
    optimizer, value, mean = Muon([p], 0.1, weight_decay=0.5, momentum=0.9), 2.0, 0.0
    lifted = orthogonalised(torch.ones(1, 1)).item()
    for gradient in (3.0, -0.5):  # the second is outweighed by what is remembered of the first
        p.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        ahead = 0.9 * mean + 0.1 * gradient
        value = value * (1 - 0.1 * 0.5) - 0.1 * 0.2 * math.copysign(lifted, ahead)
        assert ahead > 0
    assert_close(p.detach(), torch.tensor([[value]]))


def test_each_matrix_moves_by_its_own_gradient_and_those_without_one_stay():
    """Matrices of one shape go through the iteration together; they must not be mixed up."""
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (4, 3), (3, 4), (3, 4))]
    for p in parameters[:3]:
        p.grad = torch.randn_like(p)
    Muon(parameters, 1.0).step()
    for p in parameters[:3]:
        assert_close(p.detach(), -0.2 * math.sqrt(4) * orthogonalised(p.grad))
    assert not parameters[3].any()


def test_its_steps_are_about_as_large_as_those_of_adamw():
    """Numbers of 0.2 for a learning rate of 1, whatever the shape, as AdamW's usually are."""
    for shape in ((64, 64), (256, 64), (64, 256)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], 1.0).step()
        assert p.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match=rf"Muon moves matrices \(M, N\), got shape \({shape[0]},"):
        Muon([nn.Parameter(torch.zeros(shape))], 0.1)
    if len(shape) < 2:
        with pytest.raises(ValueError, match=r"Muon moves matrices \(..., M, N\), got shape \(3,\)"):
            orthogonalised(torch.zeros(shape))
