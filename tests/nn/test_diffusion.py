"""Noise schedules against their formulas and against diffusers; denoising networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.nn import DiffusersDenoiser, MLPDenoiser, NoiseSchedule

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 1,
    "sample_size": 8,
    "norm_num_groups": 4,
    "num_embeds_ada_norm": 10,
}


def test_linear_schedule_is_the_product_of_its_variances() -> None:
    schedule = NoiseSchedule(4, beta_start=0.1, beta_end=0.4)
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected)
    torch.testing.assert_close(schedule.snr, expected / (1 - expected))
    torch.testing.assert_close(schedule.log_snr, (expected / (1 - expected)).log())
    assert NoiseSchedule(betas=[0.1, 0.2, 0.3, 0.4]).alphas_cumprod.allclose(expected)


def test_cosine_schedule_follows_the_squared_cosine_until_the_clip() -> None:
    schedule = NoiseSchedule(50, kind="cosine")
    time = (torch.arange(51) / 50 + 0.008) / 1.008 * math.pi / 2
    share = time.double().cos() ** 2
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], (share / share[0])[1:-1], rtol=1e-5, atol=1e-8)
    assert schedule.betas[-1] == 0.999


def test_log_snr_is_finite_where_no_signal_or_no_noise_is_left() -> None:
    schedule = NoiseSchedule(betas=[1e-20, *[0.999] * 10])
    assert schedule.log_snr.isfinite().all()
    assert schedule.log_snr[0] == pytest.approx(math.log(1e8), rel=1e-6)
    assert schedule.log_snr[-1] == pytest.approx(-math.log(1e8), rel=1e-6)


def test_noisy_samples_have_the_stated_moments() -> None:
    schedule = NoiseSchedule(100, beta_end=0.06)
    clean, timesteps = torch.full((200_000, 1), 2.0), torch.full((200_000,), 40)
    noisy = schedule.add_noise(clean, torch.randn_like(clean), timesteps)
    share = schedule.alphas_cumprod[40].item()
    assert noisy.mean().item() == pytest.approx(2 * share**0.5, abs=0.01)
    assert noisy.var().item() == pytest.approx(1 - share, rel=0.02)


def test_every_sample_gets_the_noise_of_its_own_timestep() -> None:
    schedule = NoiseSchedule(10)
    clean, noise, timesteps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 9, 4])
    found = schedule.add_noise(clean, noise, timesteps)
    for index, timestep in enumerate(timesteps.tolist()):
        share = schedule.alphas_cumprod[timestep].item()
        torch.testing.assert_close(found[index], share**0.5 * clean[index] + (1 - share) ** 0.5 * noise[index])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_keep_their_digits_in_a_module_of_other_precision(dtype: torch.dtype) -> None:
    schedule = NoiseSchedule(1000)
    before = schedule.noise_scale.clone()
    schedule.to(dtype)
    assert schedule.noise_scale.dtype == torch.float32
    assert schedule.noise_scale.equal(before)
    assert (
        schedule.add_noise(torch.ones(1, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype), torch.tensor([3])).dtype
        == dtype
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [None, 1, 7])
def test_the_exact_noise_of_a_point_leads_back_to_the_point(eta: float, num_steps: int | None) -> None:
    schedule = NoiseSchedule(50, beta_end=0.1)
    point, sample = torch.tensor([[1.0, -2.0]]), torch.randn(6, 2)
    steps = schedule.sampling_timesteps(num_steps)
    assert steps[0] == 49
    assert num_steps == 1 or steps[-1] == 0
    for timestep, previous in zip(steps, [*steps[1:], -1], strict=True):
        share = schedule.alphas_cumprod[timestep].item()
        noise = (sample - share**0.5 * point) / (1 - share) ** 0.5
        sample = schedule.step_back(sample, noise, timestep, previous, eta)
    torch.testing.assert_close(sample, point.expand(6, 2), rtol=0, atol=1e-5)


def test_ancestral_step_has_the_mean_and_variance_of_the_posterior() -> None:
    schedule = NoiseSchedule(20, beta_end=0.2)
    sample, noise = torch.full((100_000, 1), 0.7), torch.full((100_000, 1), 0.3)
    found = schedule.step_back(sample, noise, 10, 9)
    beta, here, there = (
        float(v) for v in (schedule.betas[10], schedule.alphas_cumprod[10], schedule.alphas_cumprod[9])
    )
    mean = (0.7 - beta / (1 - here) ** 0.5 * 0.3) / (1 - beta) ** 0.5  # Ho et al., Eq. 11
    variance = beta * (1 - there) / (1 - here)
    assert found.mean().item() == pytest.approx(mean, abs=4 * (variance / 1e5) ** 0.5)
    assert found.var().item() == pytest.approx(variance, rel=0.02)


def test_clipping_bounds_the_estimated_clean_sample() -> None:
    schedule = NoiseSchedule(20)
    sample = torch.full((1, 1), 9.0)
    assert schedule.step_back(sample, torch.zeros(1, 1), 5, -1, eta=0.0, clip=1.0).item() == pytest.approx(1.0)
    assert schedule.step_back(sample, torch.zeros(1, 1), 5, -1, eta=0.0).item() > 9.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"kind": "sigmoid"}, "kind must be 'linear' or 'cosine', got 'sigmoid'"),
        ({"num_steps": 3, "beta_end": 1.0}, "betas must be at least one number, all between 0 and 1"),
        ({"betas": [0.1, 0.0]}, "betas must be at least one number, all between 0 and 1"),
        ({"betas": []}, "betas must be at least one number, all between 0 and 1"),
    ],
)
def test_impossible_schedules_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"NoiseSchedule: {message}"):
        NoiseSchedule(**arguments)


@pytest.mark.parametrize("count", [0, 11])
def test_impossible_numbers_of_sampling_steps_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be between 1 and 10, got {count}"):
        NoiseSchedule(10).sampling_timesteps(count)


# ---------------------------------------------------------------------- networks
def gradients_missing(module: torch.nn.Module, output: Tensor) -> list[str]:
    (output * torch.randn_like(output)).sum().backward()
    return [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_mlp_tells_timesteps_and_labels_apart_and_trains_all_parameters() -> None:
    denoiser = MLPDenoiser(features=3, hidden=[8], num_steps=100, num_classes=4)
    samples = torch.randn(1, 3).expand(3, 3)
    output = denoiser(samples, torch.tensor([0, 99, 99]), torch.tensor([1, 1, 2]))
    assert output.shape == (3, 3)
    assert torch.unique(output, dim=0).shape == (3, 3)
    assert gradients_missing(denoiser, output) == []
    assert copy.deepcopy(denoiser).state_dict().keys() == denoiser.state_dict().keys()


def test_mlp_reads_the_stated_features_of_the_timestep() -> None:
    denoiser = MLPDenoiser(features=1, hidden=[4], num_frequencies=3, num_steps=10)
    first = denoiser.layers[0]
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    denoiser(torch.tensor([[5.0]]), torch.tensor([3]))
    phase = [math.pi / 2 * 2**j * 0.3 for j in range(3)]
    expected = torch.tensor([[5.0, *map(math.sin, phase), *map(math.cos, phase)]])
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize(
    "arguments", [{"hidden": []}, {"hidden": [0]}, {"features": 0}, {"num_steps": 0}, {"num_classes": -1}]
)
def test_mlp_refuses_impossible_sizes(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MLPDenoiser"):
        MLPDenoiser(**arguments)


def test_mlp_refuses_labels_that_it_cannot_read_and_misses_those_that_it_needs() -> None:
    samples, timesteps = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="num_classes=0, got labels"):
        MLPDenoiser()(samples, timesteps, timesteps)
    with pytest.raises(ValueError, match="num_classes=2, got no labels"):
        MLPDenoiser(num_classes=2)(samples, timesteps)


# ---------------------------------------------------------------------- diffusers
@pytest.mark.filterwarnings("ignore")
class TestDiffusers:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        self.diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusion")

    @pytest.mark.parametrize(
        ("options", "own"),
        [
            ({"beta_schedule": "linear"}, {}),
            ({"beta_schedule": "squaredcos_cap_v2"}, {"kind": "cosine"}),
        ],
        ids=["linear", "cosine"],
    )
    def test_schedules_are_the_same(self, options: dict[str, Any], own: dict[str, Any]) -> None:
        scheduler = self.diffusers.DDPMScheduler(num_train_timesteps=100, **options)
        expected = scheduler.alphas_cumprod.double()
        for schedule in (NoiseSchedule(100, **own), NoiseSchedule.from_diffusers(scheduler)):
            torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-4, atol=1e-8)

    def test_noise_is_added_alike(self) -> None:
        scheduler = self.diffusers.DDPMScheduler()
        clean, noise, timesteps = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([0, 10, 500, 999])
        found = NoiseSchedule().add_noise(clean, noise, timesteps)
        torch.testing.assert_close(found, scheduler.add_noise(clean, noise, timesteps), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_steps_are_the_same(self, clip: float | None) -> None:
        options = {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
        sample, noise = torch.randn(4, 2), torch.randn(4, 2)
        schedule = NoiseSchedule()
        ddim = self.diffusers.DDIMScheduler(**options)
        ddim.set_timesteps(1000)
        expected = ddim.step(noise, 500, sample, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(
            schedule.step_back(sample, noise, 500, 499, 0.0, clip), expected, rtol=1e-4, atol=1e-4
        )
        ddpm = self.diffusers.DDPMScheduler(**options)
        expected = ddpm.step(noise, 500, sample, generator=torch.Generator().manual_seed(3)).prev_sample
        found = schedule.step_back(sample, noise, 500, 499, 1.0, clip, torch.Generator().manual_seed(3))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_other_targets_than_the_noise_are_refused(self) -> None:
        scheduler = self.diffusers.DDPMScheduler(prediction_type="v_prediction")
        with pytest.raises(ValueError, match="prediction_type='epsilon', got 'v_prediction'"):
            NoiseSchedule.from_diffusers(scheduler)

    @pytest.mark.parametrize(
        ("name", "config", "shape"),
        [("UNet2DModel", UNET, (3, 8, 8)), ("DiTTransformer2DModel", DIT, (4, 8, 8))],
        ids=["unet", "dit"],
    )
    def test_networks_predict_noise_of_the_shape_of_the_samples(
        self, name: str, config: dict[str, Any], shape: tuple[int, ...]
    ) -> None:
        denoiser = DiffusersDenoiser(name, config)
        assert denoiser.sample_shape == shape
        output = denoiser(torch.randn(2, *shape), torch.tensor([1, 50]))
        assert output.shape == (2, *shape)
        assert gradients_missing(denoiser, output) == []

    def test_labels_reach_the_network(self) -> None:
        denoiser = DiffusersDenoiser("DiTTransformer2DModel", DIT).eval()
        torch.nn.init.normal_(denoiser.network.proj_out_2.weight)
        samples, timesteps = torch.randn(1, 4, 8, 8).expand(2, 4, 8, 8), torch.tensor([5, 5])
        for block in denoiser.network.transformer_blocks:
            torch.nn.init.normal_(block.norm1.linear.weight)
        output = denoiser(samples, timesteps, torch.tensor([1, 2]))
        assert not torch.allclose(output[0], output[1])

    def test_unknown_classes_and_superfluous_configs_are_refused(self) -> None:
        with pytest.raises(ValueError, match="model must be the name of a class of diffusers, got 'UNet3D'"):
            DiffusersDenoiser("UNet3D")
        with pytest.raises(ValueError, match="config goes with the name of a class"):
            DiffusersDenoiser(torch.nn.Linear(1, 1), {})


def test_a_network_by_name_needs_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-mtl\[diffusion\]"):
        DiffusersDenoiser("UNet2DModel")
