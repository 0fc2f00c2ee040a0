"""Training for claims, on Lightning Fabric: one loop that resumes bit for bit after a kill.

Fabric brings precision, DDP, FSDP and torchrun. The loop is here, so that the order of data, the random numbers and the
clock are the same whether a run was interrupted or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from everyformer.files import write_atomic

Batch = Any
Step = Callable[[nn.Module, Batch], Tensor]

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
STRATEGIES = ("auto", "ddp", "fsdp")
CHECKPOINT_EVERY = 30.0  # seconds between checkpoints inside an epoch
DRAWN = 50  # batches in what counts as an epoch where they are drawn without end


@dataclasses.dataclass
class History:
    """What a training gave: mean training and validation loss per epoch, the best epoch, steps, seconds."""

    train: list[float] = dataclasses.field(default_factory=list)
    validation: list[float] = dataclasses.field(default_factory=list)
    best_epoch: int = -1
    steps: int = 0
    seconds: float = 0.0

    @property
    def best(self) -> float:
        """The lowest validation loss; without validation, the last epoch's training loss."""
        return self.validation[self.best_epoch] if self.validation else self.train[-1]


def fit(
    model: nn.Module,
    step: Step,
    train: Callable[[int], Iterable[Batch]],
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    folder: Path,
    seed: int,
    validation: Callable[[], Iterable[Batch]] | None = None,
    score: Step | None = None,
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    schedule_every: Literal["epoch", "step"] = "epoch",
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    patience: int | None = None,
    clip: float | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    strategy: str = "auto",
    label: str = "",
) -> History:
    """Train ``model`` in place until the first of the budgets ends, and return what happened.

    With ``validation``, the weights of the best epoch (the later of equals) are loaded at the end. The folder keeps a
    checkpoint at every epoch's end, every half minute and at Ctrl-C; calling again with the same folder goes on from
    there and ends with the same bits, and returns at once when the training had ended.

    Under torchrun each batch is split over the processes, so the batch size and the result stay those of one process.

    Args:
        step: ``(model, batch) -> loss``, a mean over the batch; its random numbers must come from torch.
        train: the batches of an epoch, a function of the epoch's number alone; tensors with the batch first.
        validation: the batches to validate on after each epoch, weighted by their size.
        score: like ``step``, for validation; ``step`` itself by default.
        epochs, steps, seconds: budgets, at least one; seconds of interrupted attempts count.
        patience: stop after this many epochs without improvement.
        clip: gradients together are no longer than this norm.
        strategy: ``auto``, ``ddp`` or ``fsdp``; the number of processes is torchrun's.
        label: shown on the progress bar.

    Raises:
        ValueError: a budget, precision, strategy or batch that cannot be used, or a folder that holds another training.
        FloatingPointError: the loss is not finite; epoch and step are named.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    budget = {"epochs": epochs, "steps": steps, "seconds": seconds, "patience": patience, "clip": clip}
    _check(budget, precision, strategy, device)
    fabric = _fabric(device, precision, strategy)
    torch.manual_seed(seed + 1000 * fabric.global_rank)
    built = optimizer(model.parameters())
    run = _Run(fabric, model, built, scheduler(built) if scheduler else None, folder)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    run.claim_folder({**budget, "seed": seed, "precision": precision, "world": fabric.world_size, "weights": shapes})
    if run.resume():
        return run.history

    with _deferred_interrupt() as interrupted, _progress(label, epochs, steps, fabric.is_global_zero) as show:
        while not run.over(epochs, steps, seconds, patience):
            run.module.train()
            for batch in itertools.islice(train(run.epoch), run.batch, None):
                share, weight = _share(batch, fabric)
                run.optimizer.zero_grad(set_to_none=True)
                loss = step(run.module, share)
                fabric.backward(loss * weight)
                if clip is not None:
                    fabric.clip_gradients(run.module, run.optimizer, max_norm=clip, error_if_nonfinite=False)
                run.optimizer.step()
                if run.scheduler is not None and schedule_every == "step":
                    run.scheduler.step()
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise FloatingPointError(f"loss is {value} in epoch {run.epoch}, step {run.history.steps}")
                run.count(value)
                show(run.epoch, run.history.steps, value)
                if interrupted.is_set():
                    run.save()
                    raise KeyboardInterrupt
                if run.spent(steps, seconds):
                    break
                run.save_if_due()
            if run.batch == 0:
                raise ValueError(f"train gave no batches in epoch {run.epoch}")
            run.end_epoch(_mean_score(run.module, score or step, validation(), fabric) if validation else None)
            if run.scheduler is not None and schedule_every == "epoch":
                run.scheduler.step()
            run.save()
    run.finish()
    return run.history


def fit_drawn(
    model: nn.Module,
    step: Step,
    draw: Callable[[torch.Generator], Batch],
    *,
    steps: int,
    rate: float,
    folder: Path,
    seed: int,
    warm: int = 0,
    clip: float | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    strategy: str = "auto",
    label: str = "",
) -> History:
    """Train on batches that ``draw`` makes of a generator: Adam, at a rate that falls to zero in a line; see :func:`fit`.

    For the first ``warm`` steps the rate also rises in a line.
    """

    def pace(done: int) -> float:
        return min(1.0, 1 - min(done / steps, 1), (done + 1) / warm if warm else 1.0)

    def batches(epoch: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        for _ in range(DRAWN):
            yield draw(generator)

    return fit(
        model,
        step,
        batches,
        optimizer=lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, pace),
        schedule_every="step",
        steps=steps,
        clip=clip,
        folder=folder,
        seed=seed,
        device=device,
        precision=precision,
        strategy=strategy,
        label=label,
    )


def warmed(steps: int) -> Callable[[int], float]:
    """The pace of language models' trainings: a tenth of the steps to warm up, then a line down to a tenth."""
    warm = max(1, steps // 10)
    return lambda done: (done + 1) / warm if done < warm else 1 - 0.9 * (done - warm) / max(1, steps - warm)


class _Run:
    """The state of a training and its files: all that must be the same after a kill."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None,
        folder: Path,
    ) -> None:
        self.fabric, self.model, self.scheduler, self.folder = fabric, model, scheduler, folder
        self.module, self.optimizer = fabric.setup(model, optimizer)
        self.history = History()
        self.epoch = self.batch = 0
        self.loss_sum = 0.0
        self.best: dict[str, Tensor] = {}
        self._tick = self._saved = time.monotonic()

    def claim_folder(self, settings: dict[str, Any]) -> None:
        """Note whose training the folder holds, and refuse another's."""
        file = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differ = sorted(key for key in settings if found.get(key) != settings[key])
            if differ:
                raise ValueError(f"folder {self.folder} holds a training of other {', '.join(differ)}; remove it first")
        elif self.fabric.is_global_zero:
            write_atomic(file, json.dumps(settings))
        self.fabric.barrier()

    def resume(self) -> bool:
        """Restore the newest state in the folder, if any; whether that training had ended."""
        file = self.folder / "state.pt"
        if not file.is_file():
            return False
        state = self.fabric.load(file, {"model": self.module, "optimizer": self.optimizer}, weights_only=True)
        self.history = History(**state["history"])
        self.epoch, self.batch, self.loss_sum = state["epoch"], state["batch"], state["loss_sum"]
        self.best = state["best"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"][self.fabric.global_rank].cpu())
        self._tick = time.monotonic()
        return bool(state["ended"])

    def save(self, ended: bool = False) -> None:
        """Write the state to a temporary file, then rename it: a kill leaves the old checkpoint or the new one."""
        self._count_seconds()
        rng: Any = self.fabric.all_gather(torch.get_rng_state())
        state = {
            "model": self.module,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler.state_dict() if self.scheduler is not None else {},
            "history": dataclasses.asdict(self.history),
            "epoch": self.epoch,
            "batch": self.batch,
            "loss_sum": self.loss_sum,
            "best": self.best,
            "rng": rng.reshape(self.fabric.world_size, -1),
            "ended": ended,
        }
        temporary = self.folder / ".state.pt"
        self.fabric.save(temporary, state)
        if self.fabric.is_global_zero:
            temporary.replace(self.folder / "state.pt")
        self.fabric.barrier()
        self._saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save inside an epoch when the last checkpoint is old; the main process decides for all."""
        due = time.monotonic() - self._saved > CHECKPOINT_EVERY
        if self.fabric.world_size > 1:
            due = bool(self.fabric.broadcast(due))
        if due:
            self.save()

    def count(self, loss: float) -> None:
        """One more batch."""
        self.batch += 1
        self.loss_sum += loss
        self.history.steps += 1

    def spent(self, steps: int | None, seconds: float | None) -> bool:
        """Whether the budget of steps or seconds is used up."""
        self._count_seconds()
        out_of_time = seconds is not None and self.history.seconds >= seconds
        if seconds is not None and self.fabric.world_size > 1:
            out_of_time = bool(self.fabric.broadcast(out_of_time))
        return out_of_time or (steps is not None and self.history.steps >= steps)

    def over(self, epochs: int | None, steps: int | None, seconds: float | None, patience: int | None) -> bool:
        """Whether no further epoch should begin."""
        stale = patience is not None and bool(self.best) and self.epoch - 1 - self.history.best_epoch >= patience
        return stale or (epochs is not None and self.epoch >= epochs) or self.spent(steps, seconds)

    def end_epoch(self, score: float | None) -> None:
        """Close the epoch; keep its weights when none before scored better."""
        self.history.train.append(self.loss_sum / self.batch)
        if score is not None:
            self.history.validation.append(score)
            if not self.best or score <= self.history.validation[self.history.best_epoch]:
                self.history.best_epoch = self.epoch
                self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0

    def finish(self) -> None:
        """Load the best weights and mark the training as ended."""
        if self.best:
            self.model.load_state_dict(self.best)
            self.best = {}
        self.save(ended=True)

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.history.seconds += now - self._tick
        self._tick = now


def _check(budget: dict[str, Any], precision: str, strategy: str, device: str) -> None:
    if all(budget[name] is None for name in ("epochs", "steps", "seconds")):
        raise ValueError("epochs, steps or seconds must be given: a training needs a budget")
    for name, value in budget.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if strategy == "fsdp" and not device.startswith("cuda"):
        raise ValueError(f"strategy 'fsdp' needs device cuda, got {device!r}; on the CPU use 'ddp'")


def _fabric(device: str, precision: str, strategy: str) -> Fabric:
    """Fabric on the processes that torchrun started, or on this one alone."""
    kind, _, index = device.partition(":")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // local
    if local * nodes > 1 and strategy == "auto":
        strategy = "ddp"
    devices: Any = [int(index)] if index and local == 1 else local
    chosen: Any = "auto" if local * nodes == 1 and strategy != "fsdp" else strategy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=nodes,
            strategy=chosen,
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    return fabric


def _share(batch: Batch, fabric: Fabric) -> tuple[Batch, float]:
    """This process's part of a batch on its device, and the factor that makes the mean of gradients the batch's."""
    batch = fabric.to_device(batch)
    world, rank = fabric.world_size, fabric.global_rank
    if world == 1:
        return batch, 1.0
    size = _size(batch)
    if size < world:
        raise ValueError(f"a batch of {size} cannot be split over {world} processes")
    share = tree_map(lambda leaf: leaf[rank::world] if isinstance(leaf, Tensor) else leaf, batch)
    return share, _size(share) * world / size


def _size(batch: Batch) -> int:
    return next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


@torch.no_grad()
def _mean_score(module: nn.Module, score: Step, batches: Iterable[Batch], fabric: Fabric) -> float:
    """Mean of ``score`` over all samples of ``batches``, processes taken together."""
    module.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for batch in batches:
        share, _ = _share(batch, fabric)
        size = _size(share)
        totals += torch.stack([score(module, share).double() * size, torch.full_like(totals[0], size)])
    summed: Any = fabric.all_reduce(totals, reduce_op="sum")
    return float(summed[0] / summed[1])


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step ends before the state is saved; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _progress(
    label: str, epochs: int | None, steps: int | None, main: bool
) -> Iterator[Callable[[int, int, float], None]]:
    """A progress line on the terminal of the main process; nothing where there is no terminal."""
    if not main or not sys.stderr.isatty():
        yield lambda epoch, step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}, step {task.fields[step]}, loss {task.fields[loss]:.4g}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=epochs or steps, epoch=0, step=0, loss=math.nan)
        yield lambda epoch, step, loss: progress.update(
            task, completed=epoch if epochs else step, epoch=epoch, step=step, loss=loss
        )
