"""Time and memory of gradient methods, of this package and of others, relative to the plain step on summed losses.

A step is forward, heads (one linear layer of ten classes a task), losses, backward, method and SGD; batch 32. Times are
CPU seconds of the process with one thread, every step between two plain ones, median of the ratios. Memory is the peak
of the resident set in two steps over its size before them, one process for each entry, so what a method keeps between
steps counts. ``weightings`` measures the way from the Gramian to the weights alone, over draws with conflicts.

Entries: ``ours:METHOD``, ``ours:METHOD/features``, ``ours:METHOD/sequential`` (or another engine);
``torchjd:METHOD/ENGINE`` with ENGINE one of vmap, vmap-gram, seq, seq-gram (torchjd.autojac, ``-gram`` with its option
``optimize_gramian_computation``) and autogram; ``libmtl:METHOD`` and ``libmtl-rep:METHOD`` (its ``rep_grad``). TorchJD
is taken from the environment. LibMTL is not on PyPI: give the folder of a checkout with --libmtl or $LIBMTL.

Every figure is a line in a file, from which ``tables`` prints Markdown, so that the work can be done in pieces.

Usage: python benchmarks/gradient_methods.py step --encoder mlp --tasks 2 3 8 40 [--entries ours torchjd libmtl]
       python benchmarks/gradient_methods.py memory --encoder resnet18 --tasks 8 --entries ours:UPGrad libmtl:PCGrad
       python benchmarks/gradient_methods.py weightings --tasks 2 3 8 40
       python benchmarks/gradient_methods.py tables
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl import balancers as room
from lightning_mtl.functional import gramian as weightings

ENCODERS = {
    "mlp": "MLP 4 x 256",
    "resnet18": "timm resnet18, 64 x 64",
    "vit": "timm vit_tiny, 64 x 64, patch 16",
    "vit-token": "timm vit_tiny, 64 x 64, patch 64 (2 tokens)",
}


def rays(count: int) -> list[dict[str, float]]:
    """Return as many preferences as tasks, each with one task in front."""
    return [{str(task): 2.0 if task == ray else 1.0 for task in range(count)} for ray in range(count)]


OURS: dict[str, Callable[..., room.Balancer]] = {
    "LinearScalarization": lambda k, **o: room.LinearScalarization(**o),
    "MGDA": lambda k, **o: room.MGDA(**o),
    "PCGrad": lambda k, **o: room.PCGrad(**o),
    "GradVac": lambda k, **o: room.GradVac(**o),
    "GradDrop": lambda k, **o: room.GradDrop(**o),
    "CAGrad": lambda k, **o: room.CAGrad(**o),
    "IMTL-G": lambda k, **o: room.IMTLG(**o),
    "IMTL": lambda k, **o: room.IMTL(tasks=[str(task) for task in range(k)], **o),
    "Nash-MTL": lambda k, **o: room.NashMTL(**o),
    "FairGrad": lambda k, **o: room.FairGrad(**o),
    "Aligned-MTL": lambda k, **o: room.AlignedMTL(**o),
    "UPGrad": lambda k, **o: room.UPGrad(**o),
    "DualProj": lambda k, **o: room.DualProj(**o),
    "ConFIG": lambda k, **o: room.ConFIG(**o),
    "SDMGrad": lambda k, **o: room.SDMGrad(**o),
    "MoCo": lambda k, **o: room.MoCo(**o),
    "MoDo": lambda k, **o: room.MoDo(**o),
    "DB-MTL": lambda k, **o: room.DBMTL(**o),
    "ExcessMTL": lambda k, **o: room.ExcessMTL(**o),
    "CR-MOGM": lambda k, **o: room.CRMOGM(room.MGDA(), **o),
    "PCD": lambda k, **o: room.PCD(**o),
    "EPO": lambda k, **o: room.EPO(**o),
    "PMTL": lambda k, **o: room.PMTL(rays(k), 0, **o),
    "Krum": lambda k, **o: room.Krum(0, n_selected=max(k - 1, 1), **o),
    "TrimmedMean": lambda k, **o: room.TrimmedMean((k - 1) // 2, **o),
    "Encodec": lambda k, **o: room.EncodecBalancer(**o),
}

TORCHJD = {
    **{name: name.replace("-", "") for name in ("MGDA", "PCGrad", "GradVac", "GradDrop", "Aligned-MTL", "UPGrad")},
    **{name: name.replace("-", "") for name in ("DualProj", "ConFIG", "IMTL-G", "Nash-MTL", "CAGrad", "FairGrad")},
    "ExcessMTL": "ExcessMTL",
    "PCD": "PCD",
    "TrimmedMean": "TrimmedMean",
    "Krum": "Krum",
}
"""Method -> class in torchjd.aggregation."""

NO_GRAMIAN = ("GradDrop", "ConFIG", "Nash-MTL", "TrimmedMean", "ExcessMTL")
"""Methods of TorchJD that need the matrix, so that only ``vmap`` and ``seq`` apply."""

LIBMTL: dict[str, tuple[str, dict[str, Any]]] = {
    "EW": ("EW", {}),
    "GradNorm": ("GradNorm", {"alpha": 1.5}),
    "MGDA": ("MGDA", {"mgda_gn": "none"}),
    "PCGrad": ("PCGrad", {}),
    "GradVac": ("GradVac", {"GradVac_beta": 0.5, "GradVac_group_type": 0}),
    "CAGrad": ("CAGrad", {"calpha": 0.5, "rescale": 1}),
    "IMTL": ("IMTL", {}),
    "Nash-MTL": ("Nash_MTL", {"update_weights_every": 1, "optim_niter": 20, "max_norm": 1.0}),
    "FairGrad": ("FairGrad", {"FairGrad_alpha": 1.0}),
    "Aligned-MTL": ("Aligned_MTL", {}),
    "UPGrad": ("UPGrad", {"UPGrad_norm_eps": 1e-4, "UPGrad_reg_eps": 1e-4}),
    "DB-MTL": ("DB_MTL", {"DB_beta": 0.9, "DB_beta_sigma": 0}),
    "MoCo": (
        "MoCo",
        {"MoCo_beta": 0.5, "MoCo_beta_sigma": 0.5, "MoCo_gamma": 0.1, "MoCo_gamma_sigma": 0.5, "MoCo_rho": 0},
    ),
    "ExcessMTL": ("ExcessMTL", {"robust_step_size": 1e-2}),
}
"""Method -> class in LibMTL.weighting and the arguments of its backward."""

Step = Callable[[], None]


class Problem:
    """A shared encoder, a linear head of ten classes for every task, and SGD."""

    def __init__(self, name: str, tasks: int) -> None:
        torch.manual_seed(0)
        if name == "mlp":
            self.encoder: nn.Module = nn.Sequential(
                *[layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())]
            )
            self.inputs, width = torch.randn(32, 256), 256
        else:
            import timm

            patch = {"vit": {"img_size": 64, "patch_size": 16}, "vit-token": {"img_size": 64, "patch_size": 64}}
            model = "resnet18" if name == "resnet18" else "vit_tiny_patch16_224"
            self.encoder = timm.create_model(model, pretrained=False, num_classes=0, **patch.get(name, {}))
            self.inputs, width = torch.randn(32, 3, 64, 64), self.encoder.num_features
        self.tasks = tasks
        self.heads = nn.ModuleDict({str(task): nn.Linear(width, 10) for task in range(tasks)})
        self.targets = [torch.randint(0, 10, (32,)) for _ in range(tasks)]
        self.shared = list(self.encoder.parameters())
        self.optimizer = torch.optim.SGD([*self.shared, *self.heads.parameters()], lr=1e-4)

    def losses(self) -> tuple[Tensor, list[Tensor]]:
        """Return the features and the loss of every task."""
        z = self.encoder(self.inputs)
        pairs = zip(self.heads.values(), self.targets, strict=True)
        return z, [F.cross_entropy(head(z), target) for head, target in pairs]

    def plain(self) -> None:
        """Take a step on the sum of the losses."""
        self.optimizer.zero_grad()
        torch.stack(self.losses()[1]).sum().backward()
        self.optimizer.step()

    def bound(self) -> float:
        """Return (F + K B) / (F + B) for the trunk's own forward and backward time."""
        start = time.process_time()
        z = self.encoder(self.inputs)
        forward = time.process_time() - start
        z.backward(torch.ones_like(z))
        backward = time.process_time() - start - forward
        return (forward + self.tasks * backward) / (forward + backward)


def ours(problem: Problem, method: str, option: str) -> Step:
    """Return a step of this package; the option is an engine, ``features``, or nothing."""
    chosen: dict[str, Any] = {"at": "features"} if option == "features" else {"engine": option} if option else {}
    balancer = OURS[method](problem.tasks, **chosen)
    balancer.watch(problem.encoder)

    def step() -> None:
        problem.optimizer.zero_grad()
        features, losses = problem.losses()
        named = {str(task): loss for task, loss in enumerate(losses)}
        balancer(named, shared=problem.shared, features=features).backward()
        problem.optimizer.step()

    return step


def torchjd_arguments(method: str, tasks: int) -> list[Any]:
    """Return the constructor's arguments of a class of TorchJD."""
    fixed = {"CAGrad": [0.5], "FairGrad": [1.0], "Nash-MTL": [tasks], "TrimmedMean": [(tasks - 1) // 2]}
    return [0, max(tasks - 1, 1)] if method == "Krum" else fixed.get(method, [])


def torchjd(problem: Problem, method: str, engine: str) -> Step:
    """Return a step with TorchJD."""
    import torchjd.aggregation
    import torchjd.autogram
    import torchjd.autojac

    aggregator = getattr(torchjd.aggregation, TORCHJD[method])(*torchjd_arguments(method, problem.tasks))
    if engine == "autogram":
        gram = torchjd.autogram.Engine(problem.encoder, batch_dim=None)

        def step() -> None:
            problem.optimizer.zero_grad()
            losses = torch.stack(problem.losses()[1])
            losses.backward(aggregator.gramian_weighting(gram.compute_gramian(losses)))
            problem.optimizer.step()

        return step
    kind, _, gramian = engine.partition("-")
    extra = {"optimize_gramian_computation": True} if gramian else {}

    def jacobian_step() -> None:
        problem.optimizer.zero_grad()
        features, losses = problem.losses()
        torchjd.autojac.mtl_backward(losses, features=features, parallel_chunk_size=1 if kind == "seq" else None)
        torchjd.autojac.jac_to_grad(problem.shared, aggregator, **extra)
        problem.optimizer.step()

    return jacobian_step


def import_libmtl() -> tuple[Any, Any]:
    """Return LibMTL's weightings and hard parameter sharing; only its unused trainer needs torch_geometric.

    Aligned_MTL calls ``torch.symeig``, which torch has removed, so an equivalent is put in its place.
    """
    if folder := os.environ.get("LIBMTL"):
        sys.path.insert(0, folder)
    stub = types.ModuleType("torch_geometric")
    stub.loader = types.ModuleType("torch_geometric.loader")  # type: ignore[attr-defined]
    sys.modules.setdefault("torch_geometric", stub)
    sys.modules.setdefault("torch_geometric.loader", stub.loader)  # type: ignore[attr-defined]
    torch.symeig = lambda matrix, eigenvectors=True: torch.linalg.eigh(matrix)  # type: ignore[attr-defined]
    import LibMTL.architecture as architecture
    import LibMTL.weighting as weighting

    return weighting, architecture.HPS


def libmtl(problem: Problem, method: str, at_features: bool) -> Step:
    """Return a step with a weighting of LibMTL on its own architecture."""
    weighting, sharing = import_libmtl()
    name, arguments = LIBMTL[method]
    names = [str(task) for task in range(problem.tasks)]

    class Model(sharing, getattr(weighting, name)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(names, lambda: problem.encoder, problem.heads, at_features, False, torch.device("cpu"))
            self.init_param()

    model = Model()
    model.epoch, model.epochs = 2, 10
    model.train_loss_buffer = torch.full((problem.tasks, 10), 2.3).numpy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        found = model(problem.inputs)
        losses = [F.cross_entropy(found[task], target) for task, target in zip(names, problem.targets, strict=True)]
        optimizer.zero_grad(set_to_none=False)
        model.backward(torch.stack(losses), **arguments)
        optimizer.step()

    return step


def make(problem: Problem, entry: str) -> Step:
    """Return the step that an entry names."""
    if entry == "plain":
        return problem.plain
    source, _, rest = entry.partition(":")
    method, _, option = rest.partition("/")
    if source == "ours":
        return ours(problem, method, option)
    if source == "torchjd":
        return torchjd(problem, method, option)
    return libmtl(problem, method, source == "libmtl-rep")


def seconds(step: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def measure_steps(
    name: str, tasks: int, entries: Iterable[str], rounds: int, budget: float
) -> Iterable[dict[str, Any]]:
    """Yield the figure of every entry, timed in turn with the plain step.

    Args:
        name: The encoder.
        tasks: Number of tasks.
        entries: What to measure; ``bound`` is (F + K B) / (F + B).
        rounds: Rounds at most.
        budget: CPU seconds after which an entry has no further round.
    """
    plain = Problem(name, tasks)
    plain.plain()
    plain.plain()
    for entry in entries:
        problem = Problem(name, tasks)
        try:
            if entry == "bound":
                problem.bound()
                values = [problem.bound() for _ in range(max(rounds, 5))]
            else:
                step = make(problem, entry)
                step()
                values, start = [], time.process_time()
                while len(values) < rounds and (not values or time.process_time() - start < budget):
                    before, own, after = seconds(plain.plain), seconds(step), seconds(plain.plain)
                    values.append(2 * own / (before + after))
        except Exception as error:  # a method of another package that cannot run here is a result too
            yield {"entry": entry, "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        else:
            yield {"entry": entry, "value": statistics.median(values), "rounds": len(values)}
        gc.collect()


def resident(key: str) -> float:
    """Return a size of this process in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def peak(name: str, tasks: int, entry: str) -> float:
    """Return the MiB by which two steps raise the resident set."""
    problem = Problem(name, tasks)
    step = make(problem, entry)
    with torch.no_grad():
        problem.encoder(problem.inputs)  # loads the kernels
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    step()
    return resident("VmHWM") - before


def measure_memory(name: str, tasks: int, entries: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Yield the peak of every entry in MiB, each from a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for entry in entries:
        command = [sys.executable, __file__, "peak", "--encoder", name, "--tasks", str(tasks), "--entries", entry]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            yield {"entry": entry, "error": done.stderr.strip().splitlines()[-1][:200]}
        else:
            yield {"entry": entry, "value": float(done.stdout.split()[-1])}


def draw(tasks: int, generator: torch.Generator) -> Tensor:
    """Return gradients of which many are in conflict with the first."""
    matrix = torch.randn(tasks, 64, generator=generator)
    matrix[1:] -= 0.4 * matrix[:1]
    return matrix


def solvers(tasks: int) -> dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any] | None]]:
    """Return method -> our function of the Gramian, and that of TorchJD.

    TorchJD's Nash-MTL has no such form and takes the square root of the Gramian as its matrix.
    """
    order = torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    goals = torch.zeros(tasks, tasks)
    own: dict[str, Callable[[Tensor], Any]] = {
        "MGDA": weightings.mgda,
        "PCGrad": lambda g: weightings.pcgrad(g, order),
        "GradVac": lambda g: weightings.gradvac(g, goals, order),
        "CAGrad": weightings.cagrad,
        "IMTL-G": weightings.imtl_g,
        "Nash-MTL": lambda g: weightings.nash_mtl(g, 1.0),
        "FairGrad": weightings.fairgrad,
        "Aligned-MTL": weightings.aligned_mtl,
        "UPGrad": weightings.upgrad,
        "DualProj": weightings.dualproj,
        "ConFIG": weightings.config,
        "PCD": weightings.pcd,
    }
    found: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any] | None]] = {}
    for method, function in own.items():
        found[method] = (function, torchjd_solver(method, tasks))
    return found


def torchjd_solver(method: str, tasks: int) -> Callable[[Tensor], Any] | None:
    """Return TorchJD's way from the Gramian to the weights, None where it is not installed."""
    try:
        import torchjd.aggregation

        aggregator = getattr(torchjd.aggregation, TORCHJD[method])(*torchjd_arguments(method, tasks))
    except ImportError:
        return None
    if method in ("Nash-MTL", "ConFIG"):

        def on_matrix(gramian: Tensor) -> Tensor:
            values, vectors = torch.linalg.eigh(gramian)
            if method == "Nash-MTL":
                aggregator.reset()
            return aggregator(vectors * values.clamp(min=0).sqrt())

        return on_matrix
    return aggregator.gramian_weighting


def measure_weightings(tasks: int, methods: Iterable[str], rounds: int) -> Iterable[dict[str, Any]]:
    """Yield the milliseconds of both, in turns over the same draws, and their ratio."""
    for method, (own, peer) in solvers(tasks).items():
        if method not in methods:
            continue
        generator = torch.Generator().manual_seed(0)
        times: dict[str, list[float]] = {"ours": [], "torchjd": []}
        error = None
        for number in range(rounds + 1):
            matrix = draw(tasks, generator)
            gramian = matrix @ matrix.T
            for name, function in (("ours", own), ("torchjd", peer)):
                if function is None or (name == "torchjd" and error):
                    continue
                try:
                    spent = seconds(lambda f=function, g=gramian: f(g))  # type: ignore[misc]
                except Exception as problem:
                    error = f"{type(problem).__name__}: {problem}"[:160]
                    continue
                if number:  # the first call loads
                    times[name].append(1000 * spent)
        figures = {name: statistics.median(values) for name, values in times.items() if values}
        yield {"entry": method, "milliseconds": figures, "rounds": rounds, **({"error": error} if error else {})}


# ---------------------------------------------------------------------- what is measured, and tables
def expand(words: Iterable[str], tasks: int) -> list[str]:
    """Replace ``ours``, ``torchjd`` and ``libmtl`` by all of their methods."""
    entries = []
    for word in words:
        if word == "ours":
            entries += [f"ours:{method}" for method in OURS if method != "Encodec"]
        elif word.startswith("torchjd/"):
            engine = word.partition("/")[2]
            bare = engine.partition("-")[0]
            entries += [f"torchjd:{m}/{bare if m in NO_GRAMIAN else engine}" for m in TORCHJD]
        elif word == "features":
            entries += ["ours:UPGrad/features", "ours:MGDA/features", "ours:Encodec", "libmtl-rep:MGDA"]
        elif word == "libmtl":
            entries += [f"libmtl:{method}" for method in LIBMTL]
        else:
            entries.append(word)
    return entries


def read(path: Path) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """Return the figures; a later one replaces an earlier one."""
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {(line["what"], line["encoder"], line["tasks"], line["entry"]): line for line in lines}


def cell(figure: dict[str, Any] | None, unit: float = 1.0) -> str:
    """Return a figure for a table."""
    if figure is None:
        return "-"
    if "value" not in figure:
        return "fails"
    value = figure["value"] / unit
    return f"{value:.2f}" if value < 20 else f"{value:.0f}"


def matrix_table(found: dict[tuple[str, str, int, str], dict[str, Any]], what: str, encoder: str) -> list[str]:
    """Return the Markdown lines of one encoder: entries by numbers of tasks."""
    counts = sorted({key[2] for key in found if key[:2] == (what, encoder)})
    entries = list(dict.fromkeys(key[3] for key in found if key[:2] == (what, encoder)))
    order = ("bound", "plain", "ours", "torchjd", "libmtl")
    entries.sort(key=lambda entry: next(rank for rank, source in enumerate(order) if entry.startswith(source)))
    names = {"bound": "(F + K B) / (F + B)", "plain": "plain, MiB"}
    lines = ["| entry | " + " | ".join(f"K = {count}" for count in counts) + " |"]
    lines.append("| --- |" + " ---: |" * len(counts))
    for entry in entries:
        cells = []
        for count in counts:
            figure = found.get((what, encoder, count, entry))
            plain = found.get((what, encoder, count, "plain"), {}).get("value", 1.0)
            cells.append(cell(figure, plain if what == "memory" and entry != "plain" else 1.0))
        lines.append(f"| {names.get(entry, entry)} | {' | '.join(cells)} |")
    return lines


def weighting_table(found: dict[tuple[str, str, int, str], dict[str, Any]]) -> list[str]:
    """Return the Markdown lines of the weightings: ours / TorchJD in milliseconds (ratio)."""
    counts = sorted({key[2] for key in found if key[0] == "weightings"})
    methods = list(dict.fromkeys(key[3] for key in found if key[0] == "weightings"))
    lines = ["| method | " + " | ".join(f"K = {count}" for count in counts) + " |"]
    lines.append("| --- |" + " ---: |" * len(counts))
    for method in methods:
        cells = []
        for count in counts:
            figure = found.get(("weightings", "-", count, method), {}).get("milliseconds", {})
            mine, peer = figure.get("ours"), figure.get("torchjd")
            both = f"{mine:.2f} / {peer:.2f} ({peer / mine:.1f}x)" if mine and peer else ""
            cells.append(both or (f"{mine:.2f} / -" if mine else "-"))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def tables(path: Path) -> str:
    """Return all Markdown tables."""
    found = read(path)
    parts = []
    for what, title in (("step", "time of a step / plain"), ("memory", "peak memory of a step / plain")):
        for encoder, label in ENCODERS.items():
            if any(key[:2] == (what, encoder) for key in found):
                parts.append("\n".join([f"**{label}, batch 32: {title}**", "", *matrix_table(found, what, encoder)]))
    if any(key[0] == "weightings" for key in found):
        title = "**Gramian to weights alone: ours / TorchJD, milliseconds (how many times faster)**"
        parts.append("\n".join([title, "", *weighting_table(found)]))
    failed = [f"- {key[1]}, K = {key[2]}, {key[3]}: {line['error']}" for key, line in found.items() if "error" in line]
    return "\n\n".join([*parts, *(["\n".join(["Could not run:", "", *failed])] if failed else [])])


def main() -> None:
    """Measure what is asked for and not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "memory", "weightings", "tables", "peak"])
    parser.add_argument("--encoder", default="mlp", choices=ENCODERS)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 8, 40])
    parser.add_argument("--entries", nargs="+", help="see above; ours, features, libmtl and torchjd/ENGINE name groups")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budget", type=float, default=10.0, help="CPU seconds of an entry")
    parser.add_argument("--libmtl", help="folder of a checkout of LibMTL")
    parser.add_argument("--results", type=Path, default=Path("runs/gradient_methods.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.libmtl:
        os.environ["LIBMTL"] = options.libmtl
    if options.what == "tables":
        print(f"{os.cpu_count()} CPU cores, one thread, torch {torch.__version__}\n\n{tables(options.results)}")
        return
    if options.what == "peak":
        print(peak(options.encoder, options.tasks[0], options.entries[0]))
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    encoder = "-" if options.what == "weightings" else options.encoder
    for tasks in options.tasks:
        default = list(solvers(tasks)) if options.what == "weightings" else ["bound", "ours", "features"]
        wanted = expand(options.entries or default, tasks)
        if options.what == "memory":
            wanted = ["plain", *[entry for entry in wanted if entry not in ("plain", "bound")]]
        done = {key[3] for key in read(options.results) if key[:3] == (options.what, encoder, tasks)}
        missing = [entry for entry in wanted if entry not in done]
        if options.what == "weightings":
            figures = measure_weightings(tasks, missing, options.rounds)
        elif options.what == "memory":
            figures = measure_memory(encoder, tasks, missing)
        else:
            figures = measure_steps(encoder, tasks, missing, options.rounds, options.budget)
        for figure in figures:
            line = {"what": options.what, "encoder": encoder, "tasks": tasks, **figure}
            with options.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
