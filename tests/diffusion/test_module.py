"""DiffusionTaskModule: clusters as tasks, draws, averages, sampling."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_mtl import NonFiniteLossError
from lightning_mtl.balancers import NashMTL, PCGrad, UncertaintyWeighting
from lightning_mtl.callbacks import GradientConflict
from lightning_mtl.diffusion import DiffusionTaskModule, NoisePrediction
from lightning_mtl.functional import interval_clustering
from lightning_mtl.nn import MLPDenoiser, NoiseSchedule
from tests.diffusion.toys import make_data, make_diffusion
from tests.toys import make_trainer
from tests.trainable import TRAINABLE, build

POINTS = torch.randn(23, 2, generator=torch.Generator().manual_seed(5))


# ---------------------------------------------------------------------- clusters
@pytest.mark.parametrize(
    ("clusters", "values"),
    [("log_snr", NoiseSchedule(20, beta_end=0.2).log_snr), ("timestep", torch.arange(20))],
    ids=["log_snr", "timestep"],
)
def test_clusters_are_the_best_intervals(clusters: str, values: Tensor) -> None:
    module = make_diffusion(clusters=clusters, num_clusters=4)
    assert list(module.clusters.values()) == interval_clustering(values, k=4)
    assert list(module.tasks) == [f"t[{first}-{last}]" for first, last in module.clusters.values()]


def test_uniform_clusters_differ_in_length_by_one_at_most() -> None:
    intervals = list(make_diffusion(clusters="uniform", num_clusters=3).clusters.values())
    assert intervals == [(0, 6), (7, 12), (13, 19)]
    assert make_diffusion(clusters="uniform", num_clusters=5).clusters["t[16-19]"] == (16, 19)


def test_given_clusters_may_leave_timesteps_out() -> None:
    module = make_diffusion(clusters=[[2, 4], [10, 10]])
    noisy, _ = module.noisy_batch(POINTS)
    assert set(noisy.timesteps.tolist()) <= {2, 3, 4, 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": [[0, 5], [5, 9]]}, "clusters must be ascending"),
        ({"clusters": [[5, 9], [0, 4]]}, "clusters must be ascending"),
        ({"clusters": [[3, 2]]}, "clusters must be ascending"),
        ({"clusters": [[0, 20]]}, r"clusters must be ascending \[first, last\] pairs between 0 and 19"),
        ({"clusters": [[-1, 3]]}, "clusters must be ascending"),
        ({"clusters": []}, "clusters must be ascending"),
        ({"clusters": "snr"}, "clusters must be 'log_snr', 'timestep', 'uniform' or a list, got 'snr'"),
        ({"clusters": "uniform", "num_clusters": 21}, "num_clusters must be between 1 and 20, got 21"),
        ({"factors": "mean"}, "factors must be 'equal' or 'length', got 'mean'"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"balancer_lr": 0.0}, "balancer_lr must be positive, got 0.0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DiffusionTaskModule: {message}"):
        make_diffusion(**arguments)


# ---------------------------------------------------------------------- draws
@pytest.mark.parametrize("size", [1, 2, 3, 23, 24])
def test_every_sample_is_used_and_clusters_differ_by_one_sample_at_most(size: int) -> None:
    module = make_diffusion()
    for _ in range(20):
        noisy, noise = module.noisy_batch(torch.randn(size, 2))
        assert sum(noisy.counts.values()) == size == len(noisy.timesteps)
        assert set(noisy.counts.values()) <= {size // 3, size // 3 + 1}
        assert {name: len(part) for name, part in noise.items()} == noisy.counts
        parts = torch.split(noisy.timesteps, list(noisy.counts.values()))
        for (first, last), part in zip((module.clusters[name] for name in noisy.counts), parts, strict=True):
            assert ((part >= first) & (part <= last)).all()


def test_the_remainder_goes_to_every_cluster_in_turn_and_timesteps_cover_their_cluster() -> None:
    module = make_diffusion()
    larger, seen = dict.fromkeys(module.clusters, 0), set()
    for _ in range(300):
        noisy, _ = module.noisy_batch(torch.randn(4, 2))
        seen |= set(noisy.timesteps.tolist())
        larger[max(noisy.counts, key=lambda name: noisy.counts[name])] += 1
    assert seen == set(range(20))
    assert all(70 <= count <= 130 for count in larger.values()), larger


def test_noisy_samples_are_those_of_the_schedule() -> None:
    module = make_diffusion()
    noisy, noise = module.noisy_batch(POINTS)
    expected = module.schedule.add_noise(POINTS, torch.cat(list(noise.values())), noisy.timesteps)
    assert noisy.samples.equal(expected)


def test_draws_follow_the_global_seed() -> None:
    module = make_diffusion()

    def draw() -> Tensor:
        noisy, _ = module.noisy_batch(POINTS)
        return torch.cat([noisy.samples.flatten(), noisy.timesteps.float()])

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert draw().equal(first)
    assert not first.equal(second)


def test_timesteps_tell_nothing_about_the_noise() -> None:
    module = make_diffusion(clusters=[[0, 19]])
    draws = [module.noisy_batch(torch.zeros(4, 1), seed=seed) for seed in range(1000)]
    timesteps = torch.stack([noisy.timesteps for noisy, _ in draws]).double()
    numbers = torch.stack([noise["t[0-19]"].flatten() for _, noise in draws]).double()
    for function in (torch.clone, torch.square):
        cosines = torch.corrcoef(torch.cat([timesteps, function(numbers)], 1).T)[:4, 4:]
        assert cosines.abs().max() < 4 / 1000**0.5  # four standard deviations of what independence gives


@pytest.mark.parametrize("factors", ["equal", "length"])
def test_losses_are_means_over_the_samples_of_a_cluster_times_its_factor(factors: str) -> None:
    module = make_diffusion(factors=factors)
    torch.manual_seed(3)
    losses = module.task_losses(POINTS)
    torch.manual_seed(3)
    noisy, noise = module.noisy_batch(POINTS)
    prediction = module.denoiser(noisy.samples, noisy.timesteps)
    start = 0
    for name, (first, last) in module.clusters.items():
        part = prediction[start : start + noisy.counts[name]]
        factor = 1 / 3 if factors == "equal" else (last - first + 1) / 20
        torch.testing.assert_close(losses[name], factor * (part - noise[name]).square().mean())
        start += noisy.counts[name]


def test_one_cluster_is_plain_training_at_uniform_timesteps() -> None:
    module = make_diffusion(clusters=[[0, 19]])
    torch.manual_seed(3)
    loss = module.training_step((POINTS, {}))
    torch.manual_seed(3)
    noisy, noise = module.noisy_batch(POINTS)
    expected = (module.denoiser(noisy.samples, noisy.timesteps) - noise["t[0-19]"]).square().mean()
    torch.testing.assert_close(loss, expected)


def test_the_loss_of_a_timestep_is_the_mean_over_the_batch() -> None:
    module = make_diffusion()
    torch.manual_seed(2)
    loss = module.timestep_loss((POINTS, {}), 7)
    torch.manual_seed(2)
    noise, timesteps = torch.randn_like(POINTS), torch.full((23,), 7)
    expected = (module.denoiser(module.schedule.add_noise(POINTS, noise, timesteps), timesteps) - noise).square().mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.long), "a batch must be a floating-point tensor"),
        (torch.zeros(0, 2), "of at least one sample"),
        ({"a": POINTS}, "got dict"),
    ],
    ids=["integers", "empty", "mapping"],
)
def test_other_batches_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_diffusion().training_step(batch)


def test_a_network_of_another_shape_is_named() -> None:
    module = DiffusionTaskModule(Constant(), NoiseSchedule(20), num_clusters=1, ema_decay=None)
    with pytest.raises(ValueError, match=r"must return the shape of its samples, \(23, 2\), got \(23, 1\)"):
        module.training_step(POINTS)


class Constant(torch.nn.Module):
    """Predicts one number a sample, whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1, 1))

    def forward(self, samples: Tensor, timesteps: Tensor) -> Tensor:
        return self.value.expand(len(samples), 1)


# ---------------------------------------------------------------------- condition
def test_labels_reach_the_network_in_training_and_sampling() -> None:
    module = make_diffusion(condition="mode", num_classes=8)
    batch = (POINTS, {"mode": torch.arange(23) % 8})
    noisy, _ = module.noisy_batch(batch)
    assert noisy.labels is not None
    assert noisy.labels.equal(batch[1]["mode"])
    module.training_step(batch).backward()
    assert module.sample(3, labels=torch.tensor([0, 1, 7])).shape == (3, 2)
    assert module.predict_step(batch)["samples"].shape == (23, 2)
    with pytest.raises(ValueError, match="labels must be given"):
        module.sample(3)
    with pytest.raises(ValueError, match=r"condition='mode' is not among the targets \['kind'\]"):
        module.training_step((POINTS, {"kind": torch.zeros(23)}))


# ---------------------------------------------------------------------- training
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_balancer_trains_over_clusters(name: str) -> None:
    module = make_diffusion(balancer=build(name))
    before = [parameter.detach().clone() for parameter in module.denoiser.parameters()]
    make_trainer(max_steps=2).fit(module, make_data())
    after = list(module.denoiser.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not a.equal(b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", ["EqualWeighting", "UncertaintyWeighting", "PCGrad", "NashMTL"])
def test_batches_smaller_than_the_number_of_clusters_train(name: str) -> None:
    module = make_diffusion(balancer=build(name))
    make_trainer(max_steps=4).fit(module, make_data(batch_size=2))
    assert all(parameter.isfinite().all() for parameter in module.denoiser.parameters())


def test_pcgrad_sums_the_projected_gradients_of_losses_divided_by_their_number() -> None:
    module = make_diffusion(balancer=PCGrad(), num_clusters=2)
    torch.manual_seed(1)
    module.training_step(POINTS).backward()
    found = torch.cat([parameter.grad.flatten() for parameter in module.denoiser.parameters()])
    torch.manual_seed(1)
    losses = list(module.task_losses(POINTS).values())
    parameters = list(module.denoiser.parameters())
    a, b = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]) for loss in losses
    )
    inner = (a @ b).clamp(max=0)
    torch.testing.assert_close(found, a - inner / (b @ b) * b + b - inner / (a @ a) * a)


def test_uncertainty_weighting_has_its_own_learning_rate_and_no_decay() -> None:
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.1)
    module = make_diffusion(balancer=UncertaintyWeighting(), optimizer=optimizer)
    groups = {group["name"]: group for group in module.configure_optimizers().param_groups}
    assert set(groups) == {"encoder", "balancer"}
    assert (groups["balancer"]["lr"], groups["balancer"]["weight_decay"]) == (0.025, 0.0)
    assert (groups["encoder"]["lr"], groups["encoder"]["weight_decay"]) == (1e-4, 0.1)
    assert len(groups["encoder"]["params"]) == len(list(module.denoiser.parameters()))
    torch.manual_seed(1)
    total = module.training_step(POINTS)
    torch.manual_seed(1)
    torch.testing.assert_close(total, 0.5 * sum(module.task_losses(POINTS).values()))  # s = 0


def test_a_loss_that_is_not_finite_names_its_cluster() -> None:
    module = make_diffusion()
    with torch.no_grad():
        next(module.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"the loss of 't\[0-0\]', 't\["):
        module.train().training_step(POINTS)


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"accumulate_grad_batches": 2}],
    ids=["bf16-mixed", "bf16-true", "accumulation"],
)
@pytest.mark.parametrize("balancer", [PCGrad, UncertaintyWeighting])
def test_other_precisions_and_accumulation_train(options: dict[str, Any], balancer: Callable[[], Any]) -> None:
    module = make_diffusion(balancer=balancer())
    make_trainer(max_steps=3, gradient_clip_val=1.0, **options).fit(module, make_data())
    assert all(parameter.isfinite().all() for parameter in module.denoiser.parameters())
    assert module.averaged_denoiser.n_averaged == 3


def test_losses_are_logged_without_their_factor() -> None:
    module = make_diffusion(balancer=UncertaintyWeighting(), factors="length")
    trainer = make_trainer(log_every_n_steps=1, limit_val_batches=2)
    trainer.fit(module, make_data(num_train=8))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    total = 0.0
    for name, (first, last) in module.clusters.items():
        assert 0.3 < logged[f"train/{name}/loss"] < 3
        assert 0.3 < logged[f"val/{name}/loss"] < 3
        assert logged[f"balancer/{name}/weight"] == 0.5
        total += 0.5 * (last - first + 1) / 20 * logged[f"train/{name}/loss"]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)
    assert logged["val/loss"] == pytest.approx(sum(logged[f"val/{n}/loss"] for n in module.clusters), rel=1e-5)


class Texts(DummyLogger):
    """Keeps the texts that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append((name, text))


def test_the_clusters_are_logged_once_as_text(caplog: pytest.LogCaptureFixture) -> None:
    logger = Texts()
    with caplog.at_level(logging.INFO):
        make_trainer(max_steps=3, logger=[logger]).fit(make_diffusion(), make_data())
    text = "3 clusters of 20 timesteps: " + ", ".join(make_diffusion().clusters)
    assert logger.texts == [("clusters", text)]
    assert text in caplog.text


def test_gradient_conflict_sees_the_clusters(tmp_path: Path) -> None:
    module, watcher = make_diffusion(), GradientConflict(every_n_steps=1)
    make_trainer(max_steps=2, callbacks=[watcher], default_root_dir=tmp_path).fit(module, make_data())
    assert watcher.tasks == tuple(module.clusters)
    assert len(watcher.cosines) == 2


# ---------------------------------------------------------------------- the average
class Weights(pl.Callback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.seen.append(flat(module.denoiser))


def flat(network: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone()


def test_the_average_is_exponential_and_follows_steps_of_the_optimizer() -> None:
    module, weights = make_diffusion(), Weights()
    make_trainer(max_steps=4, callbacks=[weights]).fit(module, make_data())
    expected = weights.seen[0]
    for value in weights.seen[1:]:
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(flat(module.averaged_denoiser), expected)
    assert module.averaged_denoiser(POINTS, torch.zeros(23)).requires_grad is False


def test_without_a_decay_the_trained_weights_are_evaluated() -> None:
    module = make_diffusion(ema_decay=None)
    assert module.averaged_denoiser is module.denoiser
    assert not any("average" in name for name in module.state_dict())


def test_the_average_of_a_compiled_network_is_of_the_original() -> None:
    denoiser = MLPDenoiser(hidden=[8], num_steps=20)
    compiled = torch.compile(denoiser, backend="eager")
    module = DiffusionTaskModule(compiled, NoiseSchedule(20), num_clusters=2, ema_decay=0.5)
    assert type(module.averaged_denoiser.module) is MLPDenoiser
    make_trainer(max_steps=2).fit(module, make_data())
    assert module.averaged_denoiser.n_averaged == 2
    assert module.sample(2, num_steps=2).shape == (2, 2)


def test_validation_reads_the_average() -> None:
    module = make_diffusion()
    trainer = make_trainer(max_steps=3, limit_val_batches=2)
    trainer.fit(module, make_data())
    (averaged,) = trainer.validate(module, make_data(), verbose=False)
    module.denoiser.load_state_dict(module.averaged_denoiser.module.state_dict())
    plain = make_diffusion(ema_decay=None)
    plain.denoiser.load_state_dict(module.denoiser.state_dict())
    (expected,) = trainer.validate(plain, make_data(), verbose=False)
    assert averaged == pytest.approx(expected)


def test_validation_draws_the_same_every_time_and_leaves_the_random_state_alone() -> None:
    module, trainer = make_diffusion(), make_trainer()
    before = torch.get_rng_state()
    first, second = (trainer.validate(module, make_data(), verbose=False) for _ in range(2))
    tested = trainer.test(module, make_data(num_test=40), verbose=False)
    assert first == second
    assert set(tested[0]) == {name.replace("val/", "test/") for name in first[0]}
    noise = [module.noisy_batch(POINTS, seed=index)[0].samples for index in range(2)]
    assert not noise[0].equal(noise[1])
    assert torch.get_rng_state().equal(before)


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("balancer", [UncertaintyWeighting, functools.partial(NashMTL, every_n_steps=3)])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(balancer: Callable[[], Any], tmp_path: Path) -> None:
    def run(folder: str, steps: int, checkpoint: Path | None = None) -> DiffusionTaskModule:
        pl.seed_everything(9 if checkpoint is None else 77, verbose=False)
        module = make_diffusion(balancer=balancer(), optimizer=torch.optim.Adam)
        saver = ModelCheckpoint(dirpath=tmp_path / folder, save_last=True, every_n_train_steps=5, save_top_k=1)
        trainer = make_trainer(max_epochs=-1, max_steps=steps, callbacks=[saver], enable_checkpointing=True)
        trainer.fit(module, make_data(), ckpt_path=checkpoint)
        return module

    whole = run("whole", 13)
    run("cut", 5)
    resumed = run("cut", 13, tmp_path / "cut" / "last.ckpt")
    expected, found = whole.state_dict(), resumed.state_dict()
    tensors = [name for name, value in expected.items() if isinstance(value, Tensor)]
    assert any("average" in name for name in tensors)
    assert all(found[name].equal(expected[name]) for name in tensors)


def test_a_checkpoint_builds_the_module_again(tmp_path: Path) -> None:
    module = make_diffusion(balancer=PCGrad(seed=3), clusters=[[0, 4], [5, 19]])
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = DiffusionTaskModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    assert again.clusters == module.clusters
    assert isinstance(again.balancer, PCGrad)
    samples = [m.sample(4, generator=torch.Generator().manual_seed(0)) for m in (module, again)]
    assert samples[0].equal(samples[1])


# ---------------------------------------------------------------------- sampling
def test_sampling_follows_its_generator_and_restores_modes() -> None:
    module = make_diffusion()
    module.denoiser.layers[1].eval()
    before = [part.training for part in module.modules()]
    state = torch.get_rng_state()
    first, second = (module.sample(5, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.equal(second)
    assert first.isfinite().all()
    assert torch.get_rng_state().equal(state)
    assert [part.training for part in module.modules()] == before
    ddim = [module.sample(5, num_steps=4, eta=0.0, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert ddim[0].equal(ddim[1])
    assert not ddim[0].equal(first)


def test_sampling_reads_the_average_or_the_weights() -> None:
    module = make_diffusion()
    with torch.no_grad():
        for parameter in module.averaged_denoiser.parameters():
            parameter.zero_()
    averaged, plain = (
        module.sample(3, num_steps=1, eta=0.0, average=average, generator=torch.Generator().manual_seed(0))
        for average in (True, False)
    )
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(averaged, start / module.schedule.alphas_cumprod[-1].item() ** 0.5)
    assert not plain.allclose(averaged)


def test_sampling_needs_a_shape() -> None:
    module = DiffusionTaskModule(Constant(), NoiseSchedule(20), num_clusters=1)
    with pytest.raises(ValueError, match="Constant has no sample_shape; pass shape="):
        module.sample(2)
    with pytest.raises(ValueError, match="condition is None, so labels must be left out"):
        make_diffusion().sample(2, labels=torch.zeros(2, dtype=torch.long))


def test_onnx_is_left_to_the_network(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"torch.onnx.export\(module.averaged_denoiser"):
        make_diffusion().export_onnx(tmp_path / "model.onnx", POINTS)


def test_a_model_of_one_point_learns_to_sample_it() -> None:
    module = make_diffusion(optimizer=functools.partial(torch.optim.Adam, lr=0.02), balancer=PCGrad(), ema_decay=None)
    trainer = make_trainer(max_epochs=-1, max_steps=200)
    trainer.fit(module, make_data(num_modes=1, std=0.0, radius=1.0, batch_size=64, num_train=6400))
    samples = module.sample(200)
    assert samples.mean(0).tolist() == pytest.approx([1.0, 0.0], abs=0.15)
    assert samples.std(0).max() < 0.3


# ---------------------------------------------------------------------- the task
def test_noise_prediction_is_a_mean_over_samples_and_zero_without_any() -> None:
    task = NoisePrediction()
    prediction = torch.randn(3, 4, 2, requires_grad=True)
    noise = torch.randn(3, 4, 2)
    torch.testing.assert_close(task.loss(prediction, noise), (prediction - noise).square().mean())
    assert task.num_labelled(noise) == 3
    empty = task.loss(prediction[:0], noise[:0])
    assert empty == 0
    assert torch.autograd.grad(empty, prediction)[0].abs().sum() == 0
    assert task.loss(prediction.bfloat16(), noise.bfloat16()).dtype == torch.float32
    assert task.predict(prediction) is prediction
    assert task.render(noise).shape == (0, 3, 1, 1)
