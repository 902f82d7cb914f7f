"""Several machines work through the runs of one benchmark: Optuna's storage hands them out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lightning_mtl.cli.benchmark.execution import Train, described, outcome, perform
from lightning_mtl.cli.benchmark.plan import PlannedRun

if TYPE_CHECKING:
    import optuna

_HEARTBEAT = 60  # seconds; a machine that is silent for two of them has lost its run
_ATTRIBUTE = "run"


class RunFailedError(RuntimeError):
    """A run failed; its trial does as well."""


def through_storage(
    runs: Sequence[PlannedRun], train: Train, say: Callable[[str], None], storage: str, study_name: str
) -> None:
    """Do what no other machine does of these runs, each as one trial of a study.

    Every machine gives the same command. Optuna's queue hands each run to one of them; a run whose machine falls silent
    goes back into the queue and continues from its last checkpoint. The folder of the benchmark must be shared.

    Args:
        runs: The runs, baselines first.
        train: How to train one.
        say: Is told about every run.
        storage: Address of the database, for example ``sqlite:///benchmark.db``.
        study_name: Name of the study.

    Raises:
        ModuleNotFoundError: If Optuna is not installed.
        ValueError: If there is no such database.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("benchmark: --storage needs `pip install lightning-mtl[sweeps]`.") from error
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError

    planned = {run.name: run for run in runs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats, experimental since 2.7
        try:
            database = optuna.storages.RDBStorage(
                storage, heartbeat_interval=_HEARTBEAT, heartbeat_stale_trial_callback=_requeue
            )
        except (SQLAlchemyError, ImportError) as error:
            raise ValueError(f"--storage: {storage!r} cannot be used as a database ({error}).") from error
        study = optuna.create_study(storage=database, study_name=study_name, load_if_exists=True)
        optuna.storages.fail_stale_trials(study)
    taken = {
        trial.user_attrs.get(_ATTRIBUTE)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
    }
    for name, run in planned.items():
        if name not in taken and outcome(run).status != "finished":
            study.enqueue_trial({}, user_attrs={_ATTRIBUTE: name})

    def objective(trial: optuna.Trial) -> float:
        name = trial.user_attrs.get(_ATTRIBUTE)
        if name not in planned or _is_held(study, trial):
            raise optuna.TrialPruned
        run = planned[name]
        say(f"trial {trial.number}: {run.name}: training")
        result = perform(run, runs, train)
        say(f"trial {trial.number}: {run.name}: {described(result)}")
        if result.status != "finished":
            raise RunFailedError(result.error)
        losses = result.report["last" if run.select == "last" else "best"]["losses"]
        return float(sum(loss for loss in losses.values() if loss is not None))

    def stop_at_the_end(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            study.stop()

    if study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.optimize(objective, callbacks=[stop_at_the_end], catch=(RunFailedError,))
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        say(
            f"trial {trial.number}: {trial.user_attrs.get(_ATTRIBUTE)}: still held by another process; if that one "
            f"died, give the command again in {2 * _HEARTBEAT} s"
        )


def _requeue(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    study.enqueue_trial({}, user_attrs=trial.user_attrs)


def _is_held(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Return whether an earlier trial has this run in work: two machines may put it into the queue at one moment."""
    from optuna.trial import TrialState

    return any(
        other.number < trial.number and other.user_attrs.get(_ATTRIBUTE) == trial.user_attrs[_ATTRIBUTE]
        for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    )
