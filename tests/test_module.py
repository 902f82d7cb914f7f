"""What MultiTaskModule promises, one process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from lightning_mtl import MultiTaskModule, NonFiniteLossError
from lightning_mtl.balancers import FixedWeighting
from lightning_mtl.nn import FeatureSpec, FPNHead, MLPEncoder, TimmEncoder
from lightning_mtl.tasks import Depth, MulticlassClassification, Regression, SemanticSegmentation
from tests.toys import Table, loader, make_module, make_tasks, make_trainer

SGD = functools.partial(torch.optim.SGD, lr=0.05)


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_a_step_returns_the_sum_of_the_task_losses() -> None:
    module = make_module()
    batch = Table().batch()
    torch.testing.assert_close(module.training_step(batch), sum(module.task_losses(batch).values()))


def test_forward_evaluates_the_tasks_asked_for() -> None:
    module = make_module()
    assert list(module(torch.zeros(2, 8))) == ["size", "kind", "age"]
    assert list(module(torch.zeros(2, 8), tasks=["age"])) == ["age"]


def test_an_absent_task_is_left_out_and_its_head_gets_a_zero_gradient() -> None:
    module = make_module()
    inputs, targets = Table().batch()
    del targets["kind"]
    module.training_step((inputs, targets)).backward()
    assert set(module.task_losses((inputs, targets))) == {"size", "age"}
    for parameter in module.tasks["kind"].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_task_without_labels_in_the_batch_is_left_out() -> None:
    module = make_module()
    inputs, targets = Table().batch()
    targets["age"] = torch.full_like(targets["age"], torch.nan)
    assert set(module.task_losses((inputs, targets))) == {"size", "kind"}


def test_missing_labels_of_single_samples_do_not_change_the_mean_of_the_others() -> None:
    module = make_module()
    inputs, targets = Table().batch()
    targets["size"][10:] = torch.nan
    expected = module.task_losses((inputs[:10], {"size": targets["size"][:10]}))["size"]
    torch.testing.assert_close(module.task_losses((inputs, targets))["size"], expected)


def test_batches_of_a_combined_loader_equal_one_batch_with_the_same_labels() -> None:
    module = make_module()
    inputs, targets = Table().batch()
    separate = {name: (inputs, target) for name, target in targets.items()}
    joined = module.task_losses((inputs, targets))
    for batch in (separate, {"all": (inputs, targets)}):
        found = module.task_losses(batch)
        for name, loss in joined.items():
            torch.testing.assert_close(found[name], loss)


def test_two_data_sets_with_the_same_task_count_every_label_once() -> None:
    module = make_module()
    inputs, targets = Table().batch()
    parts = {
        "first": (inputs[:10], {"size": targets["size"][:10]}),
        "second": (inputs[10:], {"size": targets["size"][10:]}),
    }
    expected = module.task_losses((inputs, {"size": targets["size"]}))["size"]
    torch.testing.assert_close(module.task_losses(parts)["size"], expected)


def test_training_with_one_loader_a_task_lowers_the_losses() -> None:
    module = make_module(optimizer=SGD)
    table = Table()
    loaders = {
        name: torch.utils.data.DataLoader([(x, y[name]) for x, y in table], batch_size=size)
        for name, size in (("size", 8), ("kind", 16), ("age", 32))
    }
    before = {name: loss.item() for name, loss in module.task_losses(table.batch()).items()}
    make_trainer(max_epochs=10).fit(module, CombinedLoader(loaders, "max_size"))
    after = {name: loss.item() for name, loss in module.task_losses(table.batch()).items()}
    assert all(after[name] < before[name] for name in before)


def test_every_promised_name_is_logged() -> None:
    module = make_module(baselines={"size": {"mae": 1.0}})
    trainer = make_trainer(log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    names = set(trainer.logged_metrics) | set(trainer.callback_metrics)
    promised = {"train/loss", "val/loss", "val/delta_m", "val/size/mae", "val/kind/accuracy"}
    promised |= {f"train/{task}/loss" for task in module.tasks} | {f"balancer/{task}/weight" for task in module.tasks}
    assert promised <= names


def test_delta_m_is_the_mean_relative_gain_over_the_baselines() -> None:
    module = make_module(baselines={"size": {"mae": 2.0}, "kind": {"accuracy": 0.5}})
    trainer = make_trainer()
    (logged,) = trainer.validate(module, loader(), verbose=False)
    gain = 50 * ((2.0 - logged["val/size/mae"]) / 2.0 + (logged["val/kind/accuracy"] - 0.5) / 0.5)
    assert logged["val/delta_m"] == pytest.approx(gain, rel=1e-4)


def test_validation_metrics_do_not_depend_on_the_batch_size() -> None:
    module = make_module()
    results = [make_trainer().validate(module, loader(Table(30), size), verbose=False)[0] for size in (30, 7)]
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_parameter_groups_follow_the_multipliers() -> None:
    module = make_module(optimizer=SGD, lr_multipliers={"heads": 3.0})
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == pytest.approx(
        {"encoder": 0.05, "heads": 0.15}
    )


def test_the_scheduler_multiplies_every_group() -> None:
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    module = make_module(optimizer=SGD, lr_multipliers={"heads": 2.0}, lr_scheduler=scheduler)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, loader())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.0005, 0.001])


def test_a_head_may_be_given_built_and_is_then_used() -> None:
    head = nn.Linear(16, 1)
    module = make_module(tasks={"size": Regression(head=head)})
    assert module.tasks["size"].head is head


def test_task_aware_features_go_to_their_heads() -> None:
    class TwoWay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feature_spec = {"a": FeatureSpec("vector", (4,)), "b": FeatureSpec("vector", (2,))}

        def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": inputs[:, :4], "b": inputs[:, 4:6]}

    module = MultiTaskModule(TwoWay(), {"a": Regression(), "b": Regression()})
    assert {name: tuple(value.shape) for name, value in module(torch.zeros(3, 8)).items()} == {"a": (3, 1), "b": (3, 1)}


# ---------------------------------------------------------------------- checkpoints and export
def test_a_checkpoint_rebuilds_the_module_without_arguments(tmp_path: Path) -> None:
    module = make_module(
        balancer=FixedWeighting({"size": 1.0, "kind": 2.0, "age": 0.5}), optimizer=SGD, lr_multipliers={"heads": 2.0}
    )
    trainer = make_trainer()
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MultiTaskModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    inputs = Table().inputs
    for name, value in module(inputs).items():
        torch.testing.assert_close(again(inputs)[name], value, rtol=0, atol=0)
    assert isinstance(again.balancer, FixedWeighting)
    groups = again.configure_optimizers().param_groups  # type: ignore[union-attr]
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.1])


def test_a_checkpoint_of_a_foreign_encoder_loads_with_the_encoder_given(tmp_path: Path) -> None:
    class Foreign(nn.Linear):
        feature_spec = FeatureSpec("vector", (5,))

    module = MultiTaskModule(Foreign(8, 5), {"size": Regression()})
    table = Table()
    table.targets = {"size": table.targets["size"]}
    trainer = make_trainer()
    trainer.fit(module, loader(table))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MultiTaskModule.load_from_checkpoint(
        tmp_path / "model.ckpt", encoder=Foreign(8, 5), tasks={"size": Regression()}, weights_only=True
    )
    torch.testing.assert_close(again.encoder.weight, module.encoder.weight)


@pytest.fixture(scope="module")
def dense_module() -> MultiTaskModule:
    torch.manual_seed(0)
    tasks = {
        "segmentation": SemanticSegmentation(4, head=functools.partial(FPNHead)),
        "depth": Depth(head=FPNHead),
        "scene": MulticlassClassification(3, head=functools.partial(_PooledLast)),
    }
    return MultiTaskModule(TimmEncoder("resnet18", features="maps"), tasks).eval()


class _PooledLast(nn.Module):
    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.channels[-1], out_channels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.linear(features[-1].mean((2, 3)))


def test_an_exported_program_gives_the_same_dictionary(dense_module: MultiTaskModule) -> None:
    inputs = torch.randn(2, 3, 64, 64)
    program = torch.export.export(dense_module, (inputs,), strict=False)
    found = program.module()(inputs)
    assert list(found) == ["segmentation", "depth", "scene"]
    for name, value in dense_module(inputs).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_an_onnx_file_gives_the_same_named_outputs(dense_module: MultiTaskModule, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    dense_module.export_onnx(tmp_path / "model.onnx", torch.randn(2, 3, 64, 64))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["segmentation", "depth", "scene"]
    inputs = torch.randn(3, 3, 64, 64)  # another batch size
    found = dict(zip(dense_module.tasks, session.run(None, {"inputs": inputs.numpy()}), strict=True))
    with torch.no_grad():
        for name, value in dense_module(inputs).items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
@pytest.mark.parametrize("what", ["encoder", "module"])
def test_compiled_training_equals_plain_training(what: str) -> None:
    plain, compiled = make_module(optimizer=SGD), make_module(optimizer=SGD)
    fitted: Any = compiled
    if what == "encoder":
        compiled.encoder.compile(backend="eager")
    else:
        fitted = torch.compile(compiled, backend="eager")
    for module in (plain, fitted):
        make_trainer().fit(module, loader())
    for name, value in plain.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(compiled.state_dict()[name], value)


def test_prediction_gives_readable_values() -> None:
    module = make_module()
    for batches in (loader(), torch.utils.data.DataLoader(Table().inputs, batch_size=8)):
        predictions = make_trainer().predict(module, batches)
        assert predictions is not None
        assert set(predictions[0]) == {"size", "kind", "age"}


def test_each_of_several_data_sets_is_predicted_by_its_own_tasks() -> None:
    module, table = make_module().eval(), Table()
    inputs, targets = table.batch()
    batch = {"one": (inputs[:3], {"kind": targets["kind"][:3]}), "age": (inputs[3:8], targets["age"][3:8])}
    with torch.no_grad():
        alone, predictions = module.predict_step(inputs), module.predict_step(batch)
    assert set(predictions) == {"kind", "age"}
    torch.testing.assert_close(predictions["kind"], alone["kind"][:3])
    torch.testing.assert_close(predictions["age"], alone["age"][3:8])


# ---------------------------------------------------------------------- numbers that are none
def poisoned(rows: int = 64) -> Table:
    table = Table(rows)
    table.targets["size"][:] = 1e30  # its square is infinite
    return table


def test_a_loss_that_is_not_finite_stops_training_and_names_the_task() -> None:
    module = make_module(optimizer=SGD)
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"loss of 'size' is not finite at step 0"):
        make_trainer().fit(module, loader(poisoned()))
    for name, value in before.items():
        torch.testing.assert_close(module.encoder.state_dict()[name], value, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_is_left_out_when_asked() -> None:
    module = make_module(optimizer=SGD, on_nonfinite="skip")
    make_trainer().fit(module, loader(poisoned()))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


# ---------------------------------------------------------------------- bad input
def test_an_encoder_without_a_spec_needs_built_heads() -> None:
    with pytest.raises(ValueError, match="declares no feature_spec"):
        MultiTaskModule(nn.Linear(8, 4), {"size": Regression()})


BAD_BATCHES = [
    pytest.param((torch.zeros(2, 8), {"sizes": torch.zeros(2, 1)}), r"unknown tasks \['sizes'\]; the known", id="name"),
    pytest.param((torch.zeros(2, 8), torch.zeros(2, 1)), r"a batch must be \(inputs, \{task: target\}\)", id="tensor"),
    pytest.param({"size": torch.zeros(2, 1)}, r"a mapping of 'size': Tensor", id="mapping"),
    pytest.param(
        (torch.zeros(2, 8), {"size": torch.full((2, 1), torch.nan)}), "no label for any of the tasks", id="no label"
    ),
    pytest.param((torch.zeros(2, 8), {}), "no label for any of the tasks", id="no target"),
    pytest.param((torch.zeros(2, 8), {"size": torch.zeros(2, 3)}), r"task 'size': .*\(2, 1\).*\(2, 3\)", id="shape"),
    pytest.param((torch.zeros(2, 8), {"kind": torch.tensor([0, 7])}), r"task 'kind': .*got 7", id="label"),
]


@pytest.mark.parametrize(("batch", "message"), BAD_BATCHES)
def test_a_bad_batch_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module().training_step(batch)


BAD_MODULES = [
    pytest.param({"tasks": {}}, "at least one task", id="no task"),
    pytest.param({"tasks": {"type": Regression()}}, "'type' cannot name a task", id="reserved name"),
    pytest.param({"tasks": {"a.b": Regression()}}, r"'a\.b' cannot name a task", id="dotted name"),
    pytest.param({"baselines": {"sizes": {"mae": 1.0}}}, r"baselines has the unknown names \['sizes'\]", id="baseline"),
    pytest.param({"lr_multipliers": {"head": 2.0}}, r"lr_multipliers has the unknown names \['head'\]", id="group"),
    pytest.param({"balancer": FixedWeighting({"size": 1.0})}, "bound to the tasks", id="balancer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_MODULES)
def test_a_bad_module_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskModule(MLPEncoder(8, [16]), **({"tasks": make_tasks()} | arguments))
