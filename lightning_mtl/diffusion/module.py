"""DiffusionTaskModule: a diffusion model whose tasks are intervals of timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Generator, Tensor, nn
from torchmetrics import MeanMetric

from lightning_mtl.balancers.base import Balancer
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.diffusion.clusters import Clusters, make_clusters
from lightning_mtl.diffusion.denoising import (
    ClusteredDenoiser,
    NoisePrediction,
    NoisySamples,
    predict_noise,
    squared_error,
)
from lightning_mtl.functional.modes import modes_kept
from lightning_mtl.module import MultiTaskModule
from lightning_mtl.nn.diffusion import NoiseSchedule
from lightning_mtl.tasks.base import Task


class DiffusionTaskModule(MultiTaskModule):
    r"""Train a diffusion model under a balancer, with intervals of timesteps as tasks (Go et al., NeurIPS 2023).

    Every batch of size B is spread over the k clusters: each gets B/k samples, the remainder goes to clusters drawn
    at random, and the timestep of a sample is drawn uniformly from its cluster. One pass of the network predicts the
    noise in all of them; the loss of cluster i, the mean over its samples times a factor, is task ``t[l-r]`` to the
    balancer:

    .. math:: L_i = f_i \, \mathbb{E}_{t \sim U[l_i, r_i]} \, \tfrac1D \, \| \epsilon - \epsilon_\theta(x_t, t) \|^2,
        \qquad f_i = \tfrac1k \;\text{ or }\; \frac{r_i - l_i + 1}{T}

    Everything else is that of :class:`MultiTaskModule`: any balancer, several processes, mixed precision, accumulation,
    exact resuming. A batch is ``inputs`` or ``(inputs, targets)``; targets are ignored but for ``condition``. Losses
    are logged without the factor, as ``train/t[0-86]/loss`` and ``val/t[0-86]/loss``; validation draws the same
    timesteps and noise every time.

    Three objectives to compare a balancer with: ``factors="length"`` without a balancer is that of uniform timesteps,
    estimated with less variance; ``clusters=[[0, T - 1]]`` draws uniform timesteps; without a balancer, all clusters
    count alike, which is a reweighting in itself.

    Args:
        denoiser: Network ``(samples, timesteps) -> noise``, or with labels as a third argument if there is a
            ``condition``. May be compiled.
        schedule: The noise schedule.
        clusters: Intervals of timesteps: optimal for the log-SNR or for the timesteps, of equal length, or given as
            ``[first, last]`` pairs, both inclusive, in ascending order. Timesteps in no interval are not trained.
        num_clusters: Number k of clusters, unless they are given.
        balancer: Turns the losses of the clusters into one update; equal weights by default.
        factors: Factor of a cluster's loss: 1/k for each (``"equal"``), or its share of the timesteps (``"length"``).
        optimizer: Callable from parameter groups to an optimizer; Adam with its own defaults by default.
        lr_scheduler: Callable from an optimizer to a scheduler; None keeps the learning rate.
        lr_interval: Whether the scheduler steps once an ``"epoch"`` or once a ``"step"``.
        balancer_lr: Learning rate of what the balancer learns (uncertainty weighting); it has no weight decay.
        ema_decay: Decay of the exponential moving average of the weights, which validation and sampling read; it looks
            back about ``1 / (1 - ema_decay)`` steps. None keeps no average.
        condition: Name of the target that the network gets as labels.
        on_nonfinite: What a NaN or infinite loss does: ``"raise"`` stops and names the cluster, ``"skip"`` leaves the
            cluster out of this step.

    Raises:
        ValueError: If the intervals overlap, leave the schedule or are not ascending, or a number is out of range.

    Note:
        ANT-UW is :class:`~lightning_mtl.balancers.UncertaintyWeighting`; ANT-PCGrad is
        :class:`~lightning_mtl.balancers.PCGrad`; ANT-Nash is :class:`~lightning_mtl.balancers.NashMTL` with
        ``every_n_steps=25``. The length of a Nash-MTL update does not depend on the factor of the losses, so that the
        authors' division of the total by k is left to the learning rate. Their code drops the remainder of B/k.
        Clusters have no sample in common, so ``at="features"`` has nothing to compare: use ``at="parameters"``.

        The clusters of the released training script are ``"uniform"``. ``"log_snr"`` sums absolute distances as the
        authors' clustering does; pass ``interval_clustering(schedule.log_snr, k=5, power=2)`` for squared ones. The raw
        SNR would put nearly all timesteps in the last cluster.

    Example:
        >>> from lightning_mtl.nn import MLPDenoiser, NoiseSchedule
        >>> module = DiffusionTaskModule(MLPDenoiser(num_steps=100), NoiseSchedule(100), num_clusters=3)
        >>> list(module.tasks)
        ['t[0-18]', 't[19-53]', 't[54-99]']
        >>> module.sample(4).shape
        torch.Size([4, 2])

    References:
        Go, Kim, Lee, Lee, Oh, Moon, Choi. *Addressing Negative Transfer in Diffusion Models*. NeurIPS 2023.
        https://arxiv.org/abs/2306.00354. Authors' code: https://github.com/gohyojun15/ANT_diffusion, MIT.
    """

    encoder: ClusteredDenoiser

    def __init__(
        self,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        clusters: Clusters = "log_snr",
        num_clusters: int = 5,
        balancer: Balancer | None = None,
        factors: Literal["equal", "length"] = "equal",
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        balancer_lr: float = 0.025,
        ema_decay: float | None = 0.9999,
        condition: str | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if factors not in ("equal", "length"):
            raise ValueError(f"DiffusionTaskModule: factors must be 'equal' or 'length', got {factors!r}.")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"DiffusionTaskModule: ema_decay must be in [0, 1), got {ema_decay}.")
        if not balancer_lr > 0:
            raise ValueError(f"DiffusionTaskModule: balancer_lr must be positive, got {balancer_lr}.")
        intervals = make_clusters(clusters, num_clusters, schedule)
        lengths = [last - first + 1 for first, last in intervals]
        factor = [1 / len(intervals) if factors == "equal" else length / schedule.num_steps for length in lengths]
        names = [f"t[{first}-{last}]" for first, last in intervals]
        super().__init__(
            ClusteredDenoiser(denoiser, ema_decay),
            {name: NoisePrediction(weight) for name, weight in zip(names, factor, strict=True)},
            balancer,
            optimizer,
            lr_scheduler,
            lr_interval,
            on_nonfinite=on_nonfinite,
        )
        super()._save_configuration(
            denoiser=denoiser,
            schedule=schedule,
            clusters=clusters,
            num_clusters=num_clusters,
            balancer=balancer,
            factors=factors,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            balancer_lr=balancer_lr,
            ema_decay=ema_decay,
            condition=condition,
            on_nonfinite=on_nonfinite,
        )
        self.schedule = schedule
        self.clusters = dict(zip(names, intervals, strict=True))
        self.balancer_lr = balancer_lr
        self.condition = condition

    def _save_configuration(self, **arguments: Any) -> None:
        """Leave out what the base class was given: the constructor's own arguments are stored."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        return self.encoder.network

    @property
    def averaged_denoiser(self) -> nn.Module:
        """The network with averaged weights; the trained one where no average is kept."""
        return self.encoder.chosen(average=True)

    # ------------------------------------------------------------------ noise
    def noisy_batch(
        self, batch: Any, seed: int | None = None, average: bool = False
    ) -> tuple[NoisySamples, dict[str, Tensor]]:
        """Return a batch ``(noisy samples, {cluster: noise})`` for the clusters that got samples.

        Args:
            batch: ``inputs`` or ``(inputs, targets)``.
            seed: Timesteps and noise follow from it and the rank, so that processes that were seeded alike draw
                differently. None draws it from torch's global generator.
            average: Whether the averaged network is to read the samples.
        """
        inputs, labels = self._unpack(batch)
        seed = mix_seed(int(torch.randint(2**62, ())) if seed is None else seed, self.global_rank)
        timesteps, counts = self._draw_timesteps(len(inputs), Generator().manual_seed(seed))
        timesteps = timesteps.to(inputs.device)
        # another stream than that of the timesteps; float32 whatever the precision, as the numbers differ by type
        stream = Generator(inputs.device).manual_seed(mix_seed(seed, 1))
        noise = torch.randn(inputs.shape, generator=stream, device=inputs.device).to(inputs.dtype)
        noisy = NoisySamples(self.schedule.add_noise(inputs, noise, timesteps), timesteps, counts, labels, average)
        return noisy, dict(zip(counts, torch.split(noise, list(counts.values())), strict=True))

    def _draw_timesteps(self, size: int, generator: Generator) -> tuple[Tensor, dict[str, int]]:
        """Spread a batch over the clusters: B/k each, what remains to clusters drawn at random."""
        share, rest = divmod(size, len(self.clusters))
        extra = torch.randperm(len(self.clusters), generator=generator)[:rest].tolist()
        counts = {name: share + (index in extra) for index, name in enumerate(self.clusters)}
        counts = {name: count for name, count in counts.items() if count}
        drawn = []
        for name, count in counts.items():
            first, last = self.clusters[name]
            drawn.append(torch.randint(first, last + 1, (count,), generator=generator))
        return torch.cat(drawn), counts

    def _unpack(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return the samples of a batch and their labels, if there is a condition."""
        pair = isinstance(batch, tuple | list) and len(batch) == 2
        inputs, targets = batch if pair else (batch, {})
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or not len(inputs):
            raise ValueError(
                "DiffusionTaskModule: a batch must be a floating-point tensor of at least one sample or (samples, "
                f"{{name: target}}), got {type(inputs).__name__}."
            )
        if self.condition is None:
            return inputs, None
        if not isinstance(targets, Mapping) or self.condition not in targets:
            found = list(targets) if isinstance(targets, Mapping) else type(targets).__name__
            raise ValueError(f"DiffusionTaskModule: condition={self.condition!r} is not among the targets {found}.")
        return inputs, targets[self.condition]

    def timestep_loss(self, batch: Any, timestep: int) -> Tensor:
        """Return the mean loss of the trained network on a batch, all of it at one timestep.

        Args:
            batch: ``inputs`` or ``(inputs, targets)``.
            timestep: The timestep; the noise is drawn from torch's global generator.
        """
        inputs, labels = self._unpack(batch)
        noise = torch.randn_like(inputs)
        timesteps = torch.full((len(inputs),), timestep, device=inputs.device)
        prediction = predict_noise(self.denoiser, self.schedule.add_noise(inputs, noise, timesteps), timesteps, labels)
        return squared_error(prediction, noise).mean()

    # ------------------------------------------------------------------ training
    def on_fit_start(self) -> None:
        """Say once what the clusters are."""
        text = f"{len(self.clusters)} clusters of {self.schedule.num_steps} timesteps: {', '.join(self.clusters)}"
        rank_zero_info(text)
        for logger in self.loggers if self.trainer.is_global_zero else ():
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if callable(add_text):
                add_text("clusters", text, 0)

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Draw timesteps and noise, and return the balancer's scalar."""
        return super().training_step(self.noisy_batch(batch), batch_idx)

    def task_losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the loss of every cluster, with its factor, at newly drawn timesteps and noise."""
        return super().task_losses(self.noisy_batch(batch))

    def _log_training(self, losses: Mapping[str, Tensor], parts: Mapping[str, Tensor], total: Tensor) -> None:
        plain = {name: loss / cast(Task, self.tasks[name]).loss_weight for name, loss in losses.items()}
        super()._log_training(plain, parts, total)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the optimizer's step and update the average of the weights."""
        super().optimizer_step(*args, **kwargs)
        self.encoder.update_average()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups; that of the balancer has its own learning rate and no weight decay."""
        groups = super().parameter_groups()
        for group in groups:
            if group["name"] == "balancer":
                group["lr"] = self.balancer_lr
        return groups

    # ------------------------------------------------------------------ evaluation
    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Add a batch to the losses of the clusters, at timesteps and noise that depend on its number alone."""
        self._evaluate(self.noisy_batch(batch, seed=mix_seed(dataloader_idx, batch_idx), average=True))

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Add a batch to the losses of the clusters, as in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def _evaluate(self, batch: Any) -> None:
        inputs, targets = batch
        for name, prediction in self(inputs, tasks=list(targets)).items():
            task = cast(Task, self.tasks[name])
            loss, count = task.loss(prediction, targets[name]), task.num_labelled(targets[name])
            cast(MeanMetric, self._eval_losses[name]).update(loss.float(), count.float())

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Return ``{"samples": ...}``, as many as the batch has, with its labels if there is a condition."""
        inputs, labels = self._unpack(batch)
        return {"samples": self.sample(len(inputs), tuple(inputs.shape[1:]), labels)}

    def export_onnx(self, path: str | Path, inputs: Tensor) -> None:
        """Refuse: a denoising network takes timesteps too.

        Raises:
            NotImplementedError: Always; it says what to call instead.
        """
        raise NotImplementedError(
            "DiffusionTaskModule: the network takes samples and timesteps; call torch.onnx.export(module."
            "averaged_denoiser, (samples, timesteps), path)."
        )

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        shape: Sequence[int] | None = None,
        labels: Tensor | None = None,
        *,
        num_steps: int | None = None,
        eta: float = 1.0,
        clip: float | None = None,
        average: bool = True,
        generator: Generator | None = None,
    ) -> Tensor:
        """Generate samples by removing noise step by step.

        Args:
            num_samples: How many.
            shape: Shape of one; None takes the network's ``sample_shape``.
            labels: Conditions, one a sample, if the network was trained with a condition.
            num_steps: Number of network evaluations; None takes all timesteps.
            eta: 1 for ancestral sampling (DDPM), 0 for deterministic sampling (DDIM), which needs fewer steps.
            clip: Largest absolute value of a clean sample, such as 1 for images in [-1, 1].
            average: Whether the averaged network is used, if there is one.
            generator: On the module's device; None takes torch's global one.

        Returns:
            Samples ``(num_samples, *shape)``.

        Raises:
            ValueError: If the shape is not known, or labels are missing or not wanted.
        """
        network = self.encoder.chosen(average)
        size = shape if shape is not None else getattr(self.encoder.original, "sample_shape", None)
        if size is None:
            raise ValueError(
                f"DiffusionTaskModule: {type(self.encoder.original).__name__} has no sample_shape; pass shape=."
            )
        if (labels is None) != (self.condition is None):
            raise ValueError(
                f"DiffusionTaskModule: condition is {self.condition!r}, so labels must be "
                f"{'left out' if self.condition is None else 'given'}."
            )
        with modes_kept(network):
            network.eval()
            sample = torch.randn((num_samples, *size), generator=generator, device=self.device)
            steps = self.schedule.sampling_timesteps(num_steps)
            for timestep, previous in zip(steps, [*steps[1:], -1], strict=True):
                timesteps = torch.full((num_samples,), timestep, device=self.device)
                noise = predict_noise(network, sample.to(self.dtype), timesteps, labels).to(sample.dtype)
                sample = self.schedule.step_back(sample, noise, timestep, previous, eta, clip, generator)
        return sample
