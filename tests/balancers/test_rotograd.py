"""RotoGrad: equal norms at the features, and rotations that align."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import RotoGrad
from lightning_mtl.nn import MLPEncoder, RotatedFeatures, TimmEncoder
from tests.toys import Table, loader, make_tasks, make_trainer


class Problem(nn.Module):
    """Two tasks that want to move the features in opposite directions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = RotatedFeatures(MLPEncoder(4, [3]), ["a", "b"])
        self.directions = {"a": torch.tensor([1.0, 0.0, 0.0]), "b": torch.tensor([-3.0, 0.0, 1.0])}

    def losses(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        return {name: (features[name] @ direction).mean() for name, direction in self.directions.items()}


def feature_gradients(encoder: RotatedFeatures, losses: dict[str, Tensor]) -> Tensor:
    (features,) = encoder.unrotated
    return torch.stack([torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in losses.values()])


def test_the_features_receive_the_gradients_at_one_norm() -> None:
    problem, balancer = Problem(), RotoGrad(tasks=["a", "b"])
    balancer.watch(problem.encoder)
    inputs = torch.randn(5, 4)
    losses = problem.losses(inputs)
    gradients = feature_gradients(problem.encoder, losses)
    (features,) = problem.encoder.unrotated
    norms = gradients.flatten(1).norm(dim=1)
    expected = norms.mean() * (gradients / norms[:, None, None]).sum(0)  # at the start the ratios are one half each
    (found,) = torch.autograd.grad(balancer(losses), features, retain_graph=False)
    torch.testing.assert_close(found, expected)


def test_the_common_norm_follows_the_task_that_converged_least() -> None:
    balancer = RotoGrad(tasks=["a", "b"])
    balancer.compute_weights(torch.diag(torch.tensor([4.0, 100.0])), torch.ones(2), [0, 1])
    balancer.steps = 1
    norms = torch.tensor([2.0, 1.0])  # task a stands where it was, task b at a tenth
    weights = balancer.compute_weights(torch.diag(norms**2), torch.ones(2), [0, 1])
    alphas = torch.tensor([1.0, 0.1]) / 1.1
    torch.testing.assert_close(weights, (alphas * norms).sum() / norms)


def test_the_start_norms_are_taken_again_after_burn_in() -> None:
    balancer = RotoGrad(burn_in_steps=3, tasks=["a"])
    for step, norm in enumerate([2.0, 3.0, 4.0, 5.0, 6.0]):
        balancer.steps = step
        balancer.compute_weights(torch.tensor([[norm**2]]), torch.ones(1), [0])
    torch.testing.assert_close(balancer.initial_norms, torch.tensor([5.0]))


def test_the_rotations_receive_the_gradient_of_the_alignment() -> None:
    problem, balancer = Problem(), RotoGrad(tasks=["a", "b"])
    balancer.watch(problem.encoder)
    losses = problem.losses(torch.randn(5, 4))
    gradients = feature_gradients(problem.encoder, losses)
    units = gradients / gradients.flatten(1).norm(dim=1)[:, None, None]
    balancer(losses).backward()
    for index, task in enumerate(("a", "b")):
        (parameter,) = problem.encoder.rotations[task].parameters()
        rotation = problem.encoder.rotation(task)
        rotated = units[index] @ rotation.detach().T
        alignment = -((rotated @ rotation) * units.mean(0)).sum()
        (expected,) = torch.autograd.grad(alignment, parameter)
        torch.testing.assert_close(parameter.grad, expected)


def test_training_the_rotations_aligns_the_tasks_and_keeps_them_orthogonal() -> None:
    problem, balancer = Problem(), RotoGrad(tasks=["a", "b"])
    balancer.watch(problem.encoder)
    optimizer = torch.optim.SGD(problem.encoder.rotations.parameters(), lr=0.3)
    cosines = []
    for _ in range(40):
        optimizer.zero_grad()
        balancer(problem.losses(torch.randn(16, 4))).backward()
        optimizer.step()
        cosines.append(float(balancer.cosines["a", "b"]))
    assert cosines[0] < -0.9
    assert cosines[-1] > 0.9
    for task in ("a", "b"):
        rotation = problem.encoder.rotation(task).detach()
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)


def test_it_trains_in_a_trainer_and_its_checkpoint_rebuilds_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    tasks = make_tasks()
    module = MultiTaskModule(
        RotatedFeatures(MLPEncoder(8, [16]), list(tasks)),
        tasks,
        RotoGrad(),
        optimizer=functools.partial(torch.optim.Adam, lr=0.01),
    )
    batch = Table().batch()
    before = sum(loss.item() for loss in module.task_losses(batch).values())
    trainer = make_trainer(max_epochs=5)
    trainer.fit(module, loader())
    assert sum(loss.item() for loss in module.task_losses(batch).values()) < before
    path = tmp_path_factory.mktemp("rotograd") / "model.ckpt"
    trainer.save_checkpoint(path)
    again = MultiTaskModule.load_from_checkpoint(path, weights_only=True)
    for name, value in module(batch[0]).items():
        torch.testing.assert_close(again(batch[0])[name], value)


def test_an_encoder_without_rotations_is_refused() -> None:
    module = MultiTaskModule(MLPEncoder(8, [4]), make_tasks(), RotoGrad())
    with pytest.raises(ValueError, match="the encoder must be a RotatedFeatures"):
        module.training_step(Table().batch())


def test_feature_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="must give pooled features"):
        RotatedFeatures(TimmEncoder("resnet18", features="maps"), ["a"])


def test_reused_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be 1, got 2"):
        RotoGrad(every_n_steps=2)
