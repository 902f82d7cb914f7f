"""What TaskAffinity measures, and that it leaves no trace."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_mtl.balancers import UPGrad
from lightning_mtl.callbacks import TaskAffinity, read_affinity
from lightning_mtl.callbacks.affinity.measures import lookahead
from lightning_mtl.callbacks.affinity.table import PairMeans
from lightning_mtl.callbacks.grokking.undisturbed import undisturbed
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import SeededSampler, mix_seed
from lightning_mtl.functional.gradients import gradient_rows
from tests.callbacks.scenes import Images
from tests.callbacks.scenes import make_loader as make_scenes
from tests.callbacks.scenes import make_module as make_scene_module
from tests.toys import Table, loader, make_module, make_trainer

HEADER = "measure,layer,source,target,affinity,looks"
NAMES = ["size", "kind", "age"]


# ---------------------------------------------------------------------- modules that know nothing of this package
class _Foreign:
    """Dropout, running statistics, and a count that every forward pass in training raises."""

    def build(self: Any, dropout: float = 0.3, norm: bool = True) -> None:
        self.trunk = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.Dropout(dropout))
        self.a, self.b = nn.Linear(12, 1), nn.Linear(12, 3)
        self.register_buffer("passes", torch.zeros(()))

    def losses(self: Any, batch: Any) -> dict[str, Tensor]:
        inputs, targets = batch
        self.passes += 1
        features = self.trunk(inputs)
        return {
            "a": nn.functional.mse_loss(self.a(features), targets["size"].to(features.dtype)),
            "b": nn.functional.cross_entropy(self.b(features), targets["kind"]),
        }

    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        return torch.stack(list(self.losses(batch).values())).sum()

    def configure_optimizers(self: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Foreign(_Foreign, pl.LightningModule):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.build(**arguments)


class OldForeign(_Foreign, pytorch_lightning.LightningModule):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.build(**arguments)


class Manual(Foreign):
    """Two optimizers and two steps a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, task in zip(self.optimizers(), ("a", "b"), strict=True):  # type: ignore[arg-type]
            optimizer.zero_grad()
            self.manual_backward(self.losses(batch)[task])
            optimizer.step()

    def configure_optimizers(self) -> Any:
        heads = [*self.a.parameters(), *self.b.parameters()]
        return torch.optim.SGD(self.trunk.parameters(), lr=0.1), torch.optim.SGD(heads, lr=0.1)


def compiled() -> Foreign:
    module = Foreign()
    module.trunk = torch.compile(module.trunk, backend="eager")
    return module


def watch(**arguments: Any) -> TaskAffinity:
    given: dict[str, Any] = {
        "losses": lambda module, batch: module.losses(batch),
        "shared": lambda module: module.trunk.parameters(),
    }
    return TaskAffinity(**(given | {"every_n_steps": 2} | arguments))


# ---------------------------------------------------------------------- it leaves no trace
RUNS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], dict[str, Any]]] = {
    "automatic": (Foreign, pl, {}, {}),
    "pytorch_lightning": (OldForeign, pytorch_lightning, {}, {}),
    "manual": (Manual, pl, {}, {}),
    "accumulated and clipped": (Foreign, pl, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}, {}),
    "bf16": (Foreign, pl, {"precision": "bf16-mixed"}, {}),
    "bf16, looks too": (Foreign, pl, {"precision": "bf16-mixed"}, {"mixed_precision": True}),
    "double": (Foreign, pl, {"precision": "64-true"}, {}),
    "parameters in bf16": (Foreign, pl, {"precision": "bf16-true"}, {}),
    "compiled": (compiled, pl, {}, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_weights_buffers_and_random_numbers_are_those_of_a_run_without_it(name: str, tmp_path: Path) -> None:
    make, package, arguments, options = RUNS[name]
    torch.compiler.reset()
    found = []
    data = functools.partial(DataLoader, Table(48), batch_size=8)
    for watched in (False, True):
        torch.manual_seed(1)
        module = make()
        probe = [Table(dtype=torch.get_default_dtype()).batch(slice(0, 8))]
        watcher = watch(measures=["cosine", "lookahead", "mean_cosine"], probe=probe, per_layer=True, **options)
        trainer = package.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=2,
            default_root_dir=tmp_path,
            callbacks=[watcher] if watched else [],
            **arguments,
        )
        trainer.fit(module, data(shuffle=True))
        found.append((dict(module.state_dict()), [p.grad for p in module.parameters()], torch.rand(4)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert watcher.looks == watcher.probe_looks == {"manual": 11, "accumulated and clipped": 2}.get(name, 6)
    for measure in ("cosine", "lookahead", "mean_cosine"):
        assert watcher.affinity(measure).isfinite().all()  # type: ignore[arg-type]


def test_a_graph_that_was_built_before_a_look_can_still_be_differentiated() -> None:
    module, batch = Foreign(), Table().batch()
    parameters = list(module.trunk.parameters())
    losses = module.losses(batch)
    matrix = gradient_rows(list(losses.values()), parameters, keep_graph=True)
    passes, running = module.passes, module.trunk[1].running_mean.clone()

    def again() -> Tensor:
        with undisturbed(module, training=True), torch.no_grad():
            return torch.stack(list(module.losses(batch).values()))

    lookahead(torch.stack(list(losses.values())).detach(), matrix, parameters, [0.1] * len(parameters), again)
    assert gradient_rows(list(losses.values()), parameters).equal(matrix)
    assert module.passes is passes
    assert module.trunk[1].running_mean.equal(running)


# ---------------------------------------------------------------------- what it measures
def explicit_gradients(losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> Tensor:
    rows = []
    for loss in losses.values():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def explicit_cosines(rows: Tensor) -> Tensor:
    unit = nn.functional.normalize(rows, dim=1)
    return unit @ unit.T


def brute_force(module: Any, batch: Any, seed: int, lr: float, losses: Any, trunk: Any) -> Tensor:
    """Step with torch's own SGD on a copy of the module, for every task."""
    table = []
    for task in losses(module, batch):
        torch.manual_seed(seed)
        other = copy.deepcopy(module)
        before = losses(other, batch)
        optimizer = torch.optim.SGD(trunk(other).parameters(), lr=lr)
        before[task].backward()
        optimizer.step()
        torch.manual_seed(seed)
        after = losses(other, batch)
        table.append([1 - float((after[name] / before[name]).detach()) for name in before])
    return torch.tensor(table, dtype=torch.float64)


class Snapshots(Callback):
    """Keeps the module and the batch before every step; stands before the watcher in the list of callbacks."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        trainer, pl_module._trainer = pl_module._trainer, None
        self.kept.append((copy.deepcopy(pl_module), batch))
        pl_module._trainer = trainer


@pytest.mark.parametrize("own", [True, False], ids=["MultiTaskModule", "another module"])
@pytest.mark.parametrize("rate", [None, 0.3], ids=["rate of the optimizer", "rate given"])
def test_affinities_are_those_of_brute_force(own: bool, rate: float | None) -> None:
    snapshots = Snapshots()
    if own:
        module: Any = make_module(optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        watcher = TaskAffinity(every_n_steps=2, lookahead_lr=rate)
        losses, trunk = (lambda m, batch: m.task_losses(batch)), (lambda m: m.encoder)
    else:  # with dropout and batch statistics
        module = Foreign()
        watcher = watch(lookahead_lr=rate)
        losses, trunk = (lambda m, batch: m.losses(batch)), (lambda m: m.trunk)
    make_trainer(callbacks=[snapshots, watcher], precision="64-true", fast_dev_run=6).fit(
        module, loader(Table(dtype=torch.float64))
    )
    assert watcher.looks == 3
    expected = {"cosine": [], "lookahead": []}
    for step in (2, 4, 6):
        was, batch = snapshots.kept[step - 1]
        seed = mix_seed(0, 0, step, 0)
        lr = rate or (0.1 if own else 0.01)
        expected["lookahead"].append(brute_force(was, batch, seed, lr, losses, trunk))
        torch.manual_seed(seed)
        rows = explicit_gradients(losses(was, batch), list(trunk(was).parameters()))
        expected["cosine"].append(explicit_cosines(rows))
    for measure, values in expected.items():
        torch.testing.assert_close(
            watcher.affinity(measure),  # type: ignore[arg-type]
            torch.stack(values).mean(0),
            rtol=1e-9,
            atol=1e-11,
        )
    assert (watcher.affinity("lookahead").diagonal() > 0).all()


def test_first_order_expansion_explains_small_steps() -> None:
    module = make_module(optimizer=functools.partial(torch.optim.SGD, lr=1e-4))
    watcher, snapshots = TaskAffinity(every_n_steps=1), Snapshots()
    make_trainer(callbacks=[snapshots, watcher], precision="64-true", fast_dev_run=1).fit(
        module, loader(Table(dtype=torch.float64))
    )
    was, batch = snapshots.kept[0]
    losses = was.task_losses(batch)
    rows = explicit_gradients(losses, list(was.encoder.parameters()))
    expected = 1e-4 * rows @ rows.T / torch.stack(list(losses.values())).detach()
    torch.testing.assert_close(watcher.affinity("lookahead"), expected, rtol=1e-2, atol=1e-9)


def test_every_group_of_parameters_takes_its_own_rate() -> None:
    module = make_module(optimizer=functools.partial(torch.optim.SGD, lr=1.0), lr_multipliers={"encoder": 0.0})
    watcher = TaskAffinity(every_n_steps=1)
    make_trainer(callbacks=[watcher], fast_dev_run=2).fit(module, loader())
    assert watcher.affinity("lookahead").equal(torch.zeros(3, 3, dtype=torch.float64))


def test_cosines_of_layers_are_those_of_their_own_parameters() -> None:
    module = Foreign(dropout=0.0)
    watcher, snapshots = watch(every_n_steps=1, per_layer=True), Snapshots()
    make_trainer(callbacks=[snapshots, watcher], precision="64-true", fast_dev_run=1).fit(
        module, loader(Table(dtype=torch.float64))
    )
    was, batch = snapshots.kept[0]
    losses = was.losses(batch)
    for layer in ("trunk.0", "trunk.1"):
        rows = explicit_gradients(losses, list(was.get_submodule(layer).parameters()))
        torch.testing.assert_close(watcher.affinity("cosine", layer), explicit_cosines(rows))
    with pytest.raises(KeyError, match=r"no 'cosine' of layer 'trunk\.2'"):
        watcher.affinity("cosine", "trunk.2")


def test_mean_gradients_of_a_probe_are_compared_and_averaged_over_the_looks() -> None:
    module = Foreign(dropout=0.0, norm=False)
    probe = [*loader(Table(32, seed=5, dtype=torch.float64))]
    watcher, snapshots = watch(measures=["mean_cosine"], probe=probe, every_n_steps=3), Snapshots()
    make_trainer(callbacks=[snapshots, watcher], precision="64-true", fast_dev_run=6).fit(
        module, loader(Table(dtype=torch.float64))
    )
    expected = []
    for step in (3, 6):
        was = snapshots.kept[step - 1][0]
        rows = [explicit_gradients(was.losses(batch), list(was.trunk.parameters())) for batch in probe]
        expected.append(explicit_cosines(torch.stack(rows).mean(0)))
    torch.testing.assert_close(watcher.affinity("mean_cosine"), torch.stack(expected).mean(0))
    assert (watcher.looks, watcher.probe_looks) == (0, 2)


def test_validation_data_are_the_probe_by_default(tmp_path: Path) -> None:
    module = make_module(optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    watcher = TaskAffinity(measures=["mean_cosine"], probe_batches=2, every_n_steps=8)
    table = Table(48, seed=9)
    make_trainer(callbacks=[watcher], default_root_dir=tmp_path).fit(module, loader(), loader(table))
    batches = [table.batch(slice(0, 8)), table.batch(slice(8, 16))]
    rows = [explicit_gradients(module.task_losses(batch), list(module.encoder.parameters())) for batch in batches]
    expected = explicit_cosines(torch.stack(rows).mean(0)).double()
    torch.testing.assert_close(watcher.affinity("mean_cosine"), expected, rtol=1e-4, atol=1e-5)


def test_the_two_cadences_are_independent() -> None:
    watcher = watch(
        measures=["cosine", "mean_cosine"], every_n_steps=2, probe_every_n_steps=3, probe=[Table().batch(slice(0, 8))]
    )
    make_trainer(callbacks=[watcher], fast_dev_run=8).fit(Foreign(), loader())
    assert (watcher.looks, watcher.probe_looks) == (4, 2)


def test_a_gradient_balancer_does_not_change_what_is_measured() -> None:
    found = []
    for balancer in (None, UPGrad()):
        watcher = TaskAffinity(every_n_steps=1)
        module = make_module(balancer=balancer, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        make_trainer(callbacks=[watcher], fast_dev_run=1).fit(module, loader())
        found.append([watcher.affinity("cosine"), watcher.affinity("lookahead")])
    torch.testing.assert_close(found[0], found[1])


# ---------------------------------------------------------------------- labels that are missing, losses without use
def test_pairs_are_averaged_over_the_looks_in_which_both_have_labels(tmp_path: Path) -> None:
    table = Table(32)
    table.targets["age"][:16] = torch.nan
    watcher = TaskAffinity(every_n_steps=1)
    make_trainer(callbacks=[watcher], default_root_dir=tmp_path).fit(make_module(), loader(table))
    assert watcher.tasks == NAMES
    lines = [line.split(",") for line in (tmp_path / "affinity.csv").read_text().splitlines()]
    looks = {(source, target): int(n) for kind, _, source, target, _, n in lines[1:] if kind == "lookahead"}
    assert (looks["size", "kind"], looks["size", "age"], looks["age", "age"]) == (4, 2, 2)


def test_looks_that_are_no_numbers_are_left_out() -> None:
    means = PairMeans()
    means.add(["a", "b"], torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]]))
    means.add(["b", "a"], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert means.mean("a", "a") == (4.0, 2)
    assert means.mean("a", "b") == (6.0, 1)
    assert math.isnan(means.mean("a", "c")[0])


def test_a_step_that_ends_in_infinity_is_left_out_and_the_run_goes_on() -> None:
    watcher = TaskAffinity(every_n_steps=1, lookahead_lr=1e30)
    make_trainer(callbacks=[watcher], fast_dev_run=2).fit(make_module(), loader())
    assert watcher.affinity("lookahead").isnan().any()
    assert watcher.affinity("cosine").isfinite().all()


def test_a_loss_that_is_not_positive_has_no_lookahead_affinity() -> None:
    watcher = watch(losses=lambda module, batch: {**module.losses(batch), "c": -module.losses(batch)["a"]})
    make_trainer(callbacks=[watcher], fast_dev_run=2).fit(Foreign(dropout=0.0), loader())
    found = watcher.affinity("lookahead")
    assert found[:, 2].isnan().all()
    assert found[:, :2].isfinite().all()
    torch.testing.assert_close(watcher.affinity("cosine")[0, 2], torch.tensor(-1.0, dtype=torch.float64))


# ---------------------------------------------------------------------- resuming
def test_a_resumed_run_measures_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    def run(epochs: int, **arguments: Any) -> TaskAffinity:
        pl.seed_everything(3, verbose=False)
        watcher = TaskAffinity(
            every_n_steps=3, measures=["cosine", "lookahead", "mean_cosine"], probe_batches=1, per_layer=True
        )
        keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=5, save_top_k=-1, filename="{step}")
        trainer = make_trainer(
            max_epochs=epochs,
            callbacks=[watcher, keep],
            enable_checkpointing=True,
            default_root_dir=tmp_path,
            limit_val_batches=1,
        )
        training = ResumableDataLoader(Images(), batch_size=1, sampler=SeededSampler(range(8)))
        trainer.fit(make_scene_module(), training, make_scenes(batch_size=4), **arguments)
        return watcher

    whole = run(2).state_dict()
    assert whole["looks"] == whole["probe_looks"] == 5
    (kept,) = (tmp_path / "kept").glob("*step=5.ckpt")  # the very next step is a look
    assert run(2, ckpt_path=kept, weights_only=True).state_dict() == whole


# ---------------------------------------------------------------------- what it writes
@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
def test_numbers_reach_the_logger_and_means_the_file(package: Any, tmp_path: Path) -> None:
    module = Foreign() if package is pl else OldForeign()
    kind = CSVLogger if package is pl else pytorch_lightning.loggers.CSVLogger
    watcher = watch(per_layer=True, measures=["cosine", "lookahead"])
    trainer = package.Trainer(
        accelerator="cpu",
        logger=kind(tmp_path),
        callbacks=[watcher],
        max_epochs=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=100,
    )
    trainer.fit(module, loader())
    columns = set((Path(trainer.log_dir) / "metrics.csv").read_text().splitlines()[0].split(","))
    assert columns == {"step", "affinity/cosine/a-b", "affinity/a->b", "affinity/b->a"}
    table = read_affinity(Path(trainer.log_dir) / "affinity.csv")
    assert table.tasks == ("a", "b")
    assert list(table.values) == [("cosine", ""), ("cosine", "trunk.0"), ("cosine", "trunk.1"), ("lookahead", "")]
    for (measure, layer), matrix in table.values.items():
        assert matrix.equal(watcher.affinity(measure, layer))  # type: ignore[arg-type]
    for name in ("affinity.png", "affinity-layers.png"):
        assert (Path(trainer.log_dir) / name).stat().st_size > 5000


def test_heat_maps_reach_the_logger(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="run")
    make_trainer(logger=logger, callbacks=[TaskAffinity(every_n_steps=4)]).fit(make_module(), loader())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "affinity" in events.Tags()["images"]


def test_single_pairs_of_many_tasks_are_not_logged(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    trainer = make_trainer(logger=logger, callbacks=[watch(max_pairs=1)], log_every_n_steps=100)
    trainer.fit(Foreign(), loader())
    assert not (Path(logger.log_dir) / "metrics.csv").exists()


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"probe_batches": 0}, "probe_batches must be at least 1, got 0"),
        ({"probe_every_n_steps": 0}, "probe_every_n_steps must be at least 1, got 0"),
        ({"measures": []}, "measures must be some of"),
        ({"measures": ["tag"]}, r"measures must be some of .*, got \['tag'\]"),
        ({"lookahead_lr": 0.0}, "lookahead_lr must be positive, got 0.0"),
        ({"probe": "test"}, "probe must be 'val' or batches that can be gone through again"),
        ({"probe": iter([])}, "probe must be 'val' or batches that can be gone through again"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskAffinity(**arguments)


def dropped(module: Any) -> Any:
    module.configure_optimizers = lambda: torch.optim.SGD(module.a.parameters(), lr=0.1)
    return module


@pytest.mark.parametrize(
    ("make", "watcher", "error", "message"),
    [
        (Foreign, TaskAffinity, MisconfigurationException, r"Foreign has no task_losses\(\); pass losses="),
        (
            Foreign,
            lambda: TaskAffinity(losses=lambda m, b: m.losses(b)),
            MisconfigurationException,
            r"Foreign has no shared_parameters\(\); pass shared=",
        ),
        (
            lambda: make_module(tasks={"size": make_module().tasks["size"]}),
            TaskAffinity,
            MisconfigurationException,
            r"needs the losses of at least two tasks on one batch, got \['size'\]",
        ),
        (
            Foreign,
            lambda: watch(losses=lambda m, b: {"a": m.losses(b)["a"]}),
            MisconfigurationException,
            r"needs the losses of at least two tasks on one batch, got \['a'\]",
        ),
        (Foreign, lambda: watch(shared=lambda m: []), MisconfigurationException, "no shared parameter that is trained"),
        (lambda: dropped(Foreign()), watch, MisconfigurationException, "pass lookahead_lr="),
        (Foreign, lambda: watch(losses=lambda m, b: [1]), TypeError, r"must return \{task: scalar tensor\}, got list"),
        (
            Foreign,
            lambda: watch(losses=lambda m, b: {"a": torch.ones(2)}),
            TypeError,
            r"must return \{task: scalar tensor\}, got \(2,\) for 'a'",
        ),
        (
            Foreign,
            lambda: watch(losses=lambda m, b: {t: x.detach() for t, x in m.losses(b).items()}),
            ValueError,
            "with their graph, got one without for 'a'; do not detach it",
        ),
        (
            Foreign,
            lambda: watch(measures=["mean_cosine"]),
            MisconfigurationException,
            "probe='val' needs one validation DataLoader .* got NoneType; pass the batches as probe=",
        ),
    ],
    ids=["losses", "shared", "one task", "one loss", "no shared", "no rate", "list", "vector", "detached", "no probe"],
)
def test_a_wrong_set_up_is_refused(make: Any, watcher: Any, error: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        make_trainer(callbacks=[watcher()], default_root_dir=tmp_path).fit(make(), loader())


def test_a_run_too_short_for_a_look_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing was measured in 8 steps; lower every_n_steps, now 100"):
        make_trainer(callbacks=[watch(every_n_steps=100)], default_root_dir=tmp_path).fit(Foreign(), loader())
    assert not list(tmp_path.glob("affinity*"))


def test_batches_of_one_task_each_say_so(tmp_path: Path) -> None:
    table = Table(32)
    table.targets["age"][:] = torch.nan
    table.targets["kind"][:16] = -100
    table.targets["size"][16:] = torch.nan
    with pytest.warns(UserWarning, match="in 4 steps; no batch that was looked at had labels of two tasks; mix the"):
        make_trainer(callbacks=[TaskAffinity(every_n_steps=1)], default_root_dir=tmp_path).fit(
            make_module(), loader(table)
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "must have the columns measure, layer, source"),
        (
            "measure,layer,source,target,affinity,looks\ncosine,,a,b,much,1\n",
            "line 2: affinity must be a number, got 'm",
        ),
        ("measure,layer,source,target,affinity,looks\n", "holds no affinity; the run made no look"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "affinity.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_affinity(tmp_path / "affinity.csv")
    with pytest.raises(FileNotFoundError, match=r"train with the callback .*\.TaskAffinity"):
        read_affinity(tmp_path / "other.csv")
