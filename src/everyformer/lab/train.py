"""Training on Lightning Fabric: one loop for every claim, resumable to the bit after a kill.

All randomness is a function of (seed, epoch, batch, rank): torch, numpy and ``random`` are seeded anew before every
batch is drawn and again before every step. So a resumed run draws what the uninterrupted one would have drawn, and
no generator state needs to be stored.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import logging
import math
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from everyformer.lab import environment, measure
from everyformer.lab.files import write_atomic

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
STRATEGIES = ("auto", "ddp", "fsdp")

# Without `checkpoint_every`, an epoch that takes longer than this is saved midway too.
SECONDS_BETWEEN_CHECKPOINTS = 30.0

Step = Callable[[nn.Module, Any], Tensor]
Report = Callable[[float, str], None]


@dataclasses.dataclass
class History:
    """What a training run went through. Two runs compare equal when their figures are; times and memory don't count.

    ``losses`` and ``val`` hold one mean per epoch, ``val[best_epoch] == best_value``; without validation ``val`` is
    empty, ``best_value`` is ``None`` and ``best_epoch`` the last one. ``stopped`` says what ended the run. ``seconds``
    is the time spent in batches and steps (validation and checkpoints are not counted), over all attempts, and
    ``clock`` its reading at the end of each epoch. ``peak_mb`` is the device's peak of allocated memory on a GPU, the
    process's resident peak on a CPU.
    """

    losses: list[float] = dataclasses.field(default_factory=list)
    val: list[float] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_value: float | None = None
    epochs: int = 0
    steps: int = 0
    stopped: Literal["", "epochs", "steps", "seconds", "patience"] = dataclasses.field(default="")
    seconds: float = dataclasses.field(default=0.0, compare=False)
    clock: list[float] = dataclasses.field(default_factory=list, compare=False)
    peak_mb: float = dataclasses.field(default=0.0, compare=False)


def fit(
    model: nn.Module,
    step: Step,
    train: Callable[[int], Iterable[Any]] | Iterable[Any],
    val: Callable[[], Iterable[Any]] | Iterable[Any] | None = None,
    *,
    optimizer: Callable[[list[nn.Parameter]], Optimizer],
    folder: Path,
    seed: int,
    epochs: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    val_step: Step | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    schedule_every: Literal["epoch", "step"] = "epoch",
    clip: float | None = None,
    patience: int | None = None,
    keep_best: bool = True,
    device: str = "cpu",
    precision: str = "32-true",
    strategy: str = "auto",
    devices: int = 1,
    checkpoint_every: int | None = None,
    label: str = "",
) -> History:
    """Train ``model`` in place until the first of the budgets is used up, and load its best weights.

    A second call with the same folder goes on where the first was killed, and ends with the same bits; a call after
    the end loads the weights and returns at once. The model is left on ``device`` in eval mode (with ``bf16-true`` in
    bfloat16), the global random generators as they were.

    On several processes (``devices``, or torchrun, which decides then) every process iterates the same batches and
    takes its share of the rows of each, so batch size, number of steps and, but for rounding, gradients do not depend
    on their number. Batches must then be tensors with the same first dimension, in tuples, lists or dicts, ``step``
    must be a mean over rows, and ``folder`` must be shared.

    Args:
        model: in the precision it starts from; random initialisation is the caller's.
        step: ``step(model, batch)`` gives the scalar loss. Its randomness must come from the global generators.
        train: the batches, or a function of the epoch (from 0) that gives them. Batches that are given directly are
            iterated anew each epoch; their order may depend on the global generators, or on a DataLoader's own.
        val: the validation batches, or a function that gives them; always seen with the same random numbers.
        optimizer: given the trainable parameters.
        folder: belongs to this run alone; checkpoints and the end result go there.
        epochs, steps, seconds: the budgets, at least one of them; ``seconds`` counts as in :class:`History`.
        val_step: metric of a batch, lower is better, averaged with the batches' rows as weights; by default ``step``.
        scheduler: given the optimizer; stepped every ``schedule_every``.
        clip: largest gradient norm.
        patience: epochs without a better validation metric (ties are better) after which to stop.
        keep_best: end with the weights of the best epoch, where there is validation; else with the last.
        precision: one of ``32-true``, ``bf16-mixed``, ``bf16-true``.
        strategy: one of ``auto`` (ddp on several processes), ``ddp``, ``fsdp`` (GPUs).
        checkpoint_every: steps between checkpoints within an epoch; by default every 30 seconds.
        label: part of what identifies the run, and shown by the progress bar.

    Raises:
        ValueError: an argument is out of range, or ``folder`` holds a run with other settings (they are named).
        FloatingPointError: a loss or metric that is not finite; names epoch and step.
        KeyboardInterrupt: after Ctrl-C, once the current step is finished and saved.
    """
    _check(epochs, steps, seconds, val, patience, clip, checkpoint_every, schedule_every, train)
    local, nodes = _processes(devices)
    strategy = _check_hardware(device, precision, strategy, local, nodes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have parameters that require gradients, got none")

    # FSDP cuts its module into shards; what it cuts is a copy, and the caller's model receives the result.
    trained = copy.deepcopy(model) if strategy == "fsdp" else model
    optimiser = optimizer([parameter for parameter in trained.parameters() if parameter.requires_grad])
    groups = [{**group, "params": len(group["params"])} for group in optimiser.param_groups]
    own = {id(parameter) for parameter in trained.parameters()}
    if any(id(parameter) not in own for group in optimiser.param_groups for parameter in group["params"]):
        raise ValueError("optimizer must use the parameters it is given, got others")
    schedule = scheduler(optimiser) if scheduler is not None else None
    settings = _plain(
        label=label,
        seed=seed,
        epochs=epochs,
        steps=steps,
        seconds=seconds,
        patience=patience,
        keep_best=keep_best,
        clip=clip,
        schedule_every=schedule_every,
        validation=val is not None,
        optimizer=type(optimiser).__name__,
        optimizer_groups=groups,
        scheduler=schedule and {"type": type(schedule).__name__, **schedule.state_dict()},
        parameters={name: list(parameter.shape) for name, parameter in model.named_parameters()},
        precision=precision,
        strategy=strategy,
        device=torch.device(device).type,
        processes=local * nodes,
    )
    _check_settings(folder, settings)

    if not (folder / "history.json").is_file():
        fabric = _launch(device, precision, strategy, local, nodes)
        if fabric.is_global_zero:
            _tidy(folder)
            write_atomic(folder / "settings.json", json.dumps(settings, indent=1))
        run = _Run(
            fabric, trained, step, val_step or step, optimiser, schedule, train, val,
            sharded=strategy == "fsdp", folder=folder, seed=seed, epochs=epochs, steps=steps, seconds=seconds,
            schedule_every=schedule_every, clip=clip, patience=patience, keep_best=keep_best,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip
        with (
            _caller_randomness(device),
            _interrupts() as run.interrupted,
            _progress(label, fabric.is_global_zero) as run.report,
        ):
            run.go()
        fabric.barrier()

    record = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    model.to(device=_place(device), dtype=torch.bfloat16 if precision == "bf16-true" else None)
    model.load_state_dict(_load(folder / record["weights"]))
    model.eval()
    return History(**record["history"])


@dataclasses.dataclass
class _Position:
    """How far a run has come; with weights, optimizer and scheduler all that a checkpoint holds."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    row_sum: int = 0
    waited: int = 0
    weights: str = ""
    history: History = dataclasses.field(default_factory=History)


class _Stepper(nn.Module):
    """Gives Lightning one module whose forward is the caller's step, so that DDP and autocast wrap all of it."""

    def __init__(self, model: nn.Module, step: Step, val_step: Step) -> None:
        super().__init__()
        self.model = model
        self.steps = (step, val_step)  # in a tuple: a step that is itself a module must not add parameters

    def forward(self, batch: Any, validating: bool = False) -> Tensor:
        loss = self.steps[validating](self.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            name = "val_step" if validating else "step"
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{name} must return a scalar tensor, got {got}")
        return loss.reshape(())


class _Run:
    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        step: Step,
        val_step: Step,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        train: Callable[[int], Iterable[Any]] | Iterable[Any],
        val: Callable[[], Iterable[Any]] | Iterable[Any] | None,
        *,
        sharded: bool,
        folder: Path,
        seed: int,
        epochs: int | None,
        steps: int | None,
        seconds: float | None,
        schedule_every: str,
        clip: float | None,
        patience: int | None,
        keep_best: bool,
        checkpoint_every: int | None,
    ) -> None:
        self.fabric, self.raw_optimizer, self.scheduler = fabric, optimizer, scheduler
        self.train, self.val, self.folder, self.seed = train, val, folder, seed
        self.epochs, self.steps, self.seconds = epochs, steps, seconds
        self.schedule_every, self.clip, self.patience = schedule_every, clip, patience
        self.keep_best = keep_best and val is not None
        self.checkpoint_every, self.sharded = checkpoint_every, sharded
        self.raw = _Stepper(model, step, val_step)
        self.stepper, self.optimizer = fabric.setup(self.raw, optimizer)
        self.at = _Position()
        self.interrupted: Callable[[], bool] = lambda: False
        self.report: Report = lambda share, line: None
        self.saved_at = time.perf_counter()
        self.checked = False

    def go(self) -> None:
        """Train from the last checkpoint to the end, and leave the result in the folder."""
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        if (self.folder / "checkpoint.pt").is_file():
            self.restore()
        while not self.stopped():
            self.epoch()
        history = self.at.history
        history.stopped = self.stopped()
        if self.val is None:
            history.best_epoch = history.epochs - 1
        if not self.keep_best:
            self.at.weights = self.write_weights()
        if self.fabric.is_global_zero:
            record = {"history": dataclasses.asdict(history), "weights": self.at.weights}
            write_atomic(self.folder / "history.json", json.dumps(record, indent=1))
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def stopped(self) -> Literal["", "epochs", "steps", "seconds", "patience"]:
        """Which budget is used up, if any."""
        if self.epochs is not None and self.at.epoch >= self.epochs:
            return "epochs"
        if self.patience is not None and self.at.waited >= self.patience:
            return "patience"
        if self.steps is not None and self.at.history.steps >= self.steps:
            return "steps"
        if self.seconds is not None and self.at.history.seconds >= self.seconds:
            return "seconds"
        return ""

    def epoch(self) -> None:
        """The rest of the current epoch, from the batch the position names."""
        at = self.at
        _seed(self.seed, "order", at.epoch)
        batches = self.train(at.epoch) if callable(self.train) else self.train
        _seed_loader(batches, self.seed, at.epoch)
        iterator = iter(batches)
        for done in range(at.batch):
            self.draw(iterator, done)
        self.stepper.train()
        while not self.stopped():
            began = time.perf_counter()
            batch = self.draw(iterator, at.batch)
            if batch is _END:
                break
            interrupted = self.step(batch, began)
            self.report(*self.outlook(batches))
            if interrupted or self.due():
                self.save()
            if interrupted:
                raise KeyboardInterrupt
        if not at.batch:
            raise ValueError(f"train must give at least one batch, got none in epoch {at.epoch}")
        self.close()

    def draw(self, iterator: Iterator[Any], index: int) -> Any:
        _seed(self.seed, "batch", self.at.epoch, index)
        return next(iterator, _END)

    def step(self, batch: Any, began: float) -> bool:
        """One optimizer step; returns whether the user has asked to stop."""
        at, history = self.at, self.at.history
        share, weight, rows = self.share(batch)
        _seed(self.seed, "step", at.epoch, at.batch, self.fabric.global_rank)
        loss = self.stepper(share)
        self.fabric.backward(loss if weight == 1 else loss * weight)
        # Other processes take the clock of the first, and all of them stop together.
        clock = history.seconds + time.perf_counter() - began if self.fabric.is_global_zero else 0.0
        value, stop, clock = self.sum_up(loss.item() * weight / self.fabric.world_size, self.interrupted(), clock)
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value} in epoch {at.epoch}, step {history.steps}")
        if self.clip is not None:
            self.fabric.clip_gradients(self.stepper, self.optimizer, max_norm=self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None and self.schedule_every == "step":
            self.scheduler.step()
        at.batch += 1
        at.loss_sum += value * rows
        at.row_sum += rows
        history.steps += 1
        history.seconds = clock if self.fabric.world_size > 1 else history.seconds + time.perf_counter() - began
        return stop > 0

    def close(self) -> None:
        """End an epoch: validate, keep the weights if they are the best, step the schedule, save."""
        at, history = self.at, self.at.history
        value = None
        if self.val is not None:
            try:
                value = self.validate()
            except KeyboardInterrupt:
                if self.fabric.world_size == 1:
                    self.save()
                raise
        history.losses.append(at.loss_sum / at.row_sum)
        history.clock.append(history.seconds)
        history.epochs += 1
        if value is not None:
            history.val.append(value)
            if history.best_value is None or value <= history.best_value:
                history.best_epoch, history.best_value, at.waited = at.epoch, value, 0
                if self.keep_best:
                    at.weights = self.write_weights()
            else:
                at.waited += 1
        if self.scheduler is not None and self.schedule_every == "epoch":
            self.scheduler.step()
        at.epoch += 1
        at.batch, at.loss_sum, at.row_sum = 0, 0.0, 0
        self.save()
        if self.fabric.world_size == 1 and self.interrupted():
            raise KeyboardInterrupt

    def validate(self) -> float:
        """Mean of the validation metric over rows, on all processes."""
        assert self.val is not None
        _seed(self.seed, "validation", self.fabric.global_rank)
        total, count = 0.0, 0.0
        self.stepper.eval()
        with torch.no_grad():
            for batch in self.val() if callable(self.val) else self.val:
                share, weight, rows = self.share(batch)
                amount = weight * rows / self.fabric.world_size
                total += self.stepper(share, validating=True).item() * amount
                count += amount
                if self.fabric.world_size == 1 and self.interrupted():
                    raise KeyboardInterrupt
        total, count = self.sum_up(total, count)
        if not count:
            raise ValueError("val must give at least one batch, got none")
        if not math.isfinite(total):
            raise FloatingPointError(f"validation metric is {total} after epoch {self.at.epoch}")
        return total / count

    def share(self, batch: Any) -> tuple[Any, float, int]:
        """This process's rows of ``batch`` on its device, the weight of their mean, and the rows of all."""
        rows = _rows(batch)
        weight = 1.0
        if self.fabric.world_size > 1:
            batch, weight = _share(batch, rows, self.fabric.global_rank, self.fabric.world_size)
        return self.fabric.to_device(batch), weight, rows

    def sum_up(self, *values: float) -> list[float]:
        """Sums over the processes."""
        if self.fabric.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        torch.distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def outlook(self, batches: Iterable[Any]) -> tuple[float, str]:
        """The share of the run that is done, and a line about it."""
        at, history = self.at, self.at.history
        done = 0.0
        if self.epochs is not None:
            part = at.batch / len(batches) if isinstance(batches, Sized) and len(batches) else 0.0
            done = (at.epoch + part) / self.epochs
        done = max(done, history.steps / self.steps if self.steps else 0.0)
        done = max(done, history.seconds / self.seconds if self.seconds else 0.0)
        line = f"epoch {at.epoch} step {history.steps} loss {at.loss_sum / at.row_sum:.4g}"
        return done, line if history.best_value is None else f"{line} best {history.best_value:.4g}"

    def due(self) -> bool:
        if self.checkpoint_every is not None:
            return self.at.history.steps % self.checkpoint_every == 0
        late = time.perf_counter() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS
        return late if not self.sharded else self.sum_up(late and self.fabric.is_global_zero)[0] > 0

    def save(self) -> None:
        """Write all that is needed to go on from here; on shards all processes take part."""
        state = self.module_state(optimizer=True)
        state["scheduler"] = self.scheduler.state_dict() if self.scheduler is not None else None
        peak = measure.process_peak_mb()
        if self.fabric.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.fabric.device) / 2**20
        self.at.history.peak_mb = max(self.at.history.peak_mb, peak)
        state["position"] = dataclasses.asdict(self.at)
        if self.fabric.is_global_zero:
            _save(self.folder / "checkpoint.pt", state, check=not self.checked)
            self.checked = True
            for old in self.folder.glob("weights-*.pt"):
                if old.name != self.at.weights:
                    old.unlink()
        self.saved_at = time.perf_counter()

    def restore(self) -> None:
        state = _load(self.folder / "checkpoint.pt")
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            set_state_dict(
                self.stepper._forward_module,
                self.raw_optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=StateDictOptions(full_state_dict=True),
            )
        else:
            self.raw.load_state_dict(state["model"])
            self.raw_optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.at = _Position(**{**state["position"], "history": History(**state["position"]["history"])})

    def module_state(self, optimizer: bool) -> dict[str, Any]:
        """Whole state dicts, whatever the strategy; on shards the first process alone receives them."""
        if self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            module = self.stepper._forward_module
            if not optimizer:
                return {"model": get_model_state_dict(module, options=options)}
            weights, moments = get_state_dict(module, self.raw_optimizer, options=options)
            return {"model": weights, "optimizer": moments}
        state: dict[str, Any] = {"model": self.raw.state_dict()}
        if optimizer:
            state["optimizer"] = self.raw_optimizer.state_dict()
        return state

    def write_weights(self) -> str:
        """Write the model's weights under a name of this epoch's own: a checkpoint refers to it by that name."""
        state = self.module_state(optimizer=False)["model"]
        name = f"weights-{self.at.history.epochs - 1}.pt"
        if self.fabric.is_global_zero:
            weights = {key.removeprefix("model."): value for key, value in state.items()}
            _save(self.folder / name, weights)
        return name


_END = object()


def _check(
    epochs: int | None,
    steps: int | None,
    seconds: float | None,
    val: object,
    patience: int | None,
    clip: float | None,
    checkpoint_every: int | None,
    schedule_every: str,
    train: object,
) -> None:
    if epochs is None and steps is None and seconds is None:
        raise ValueError("one of epochs, steps and seconds must be given, got none")
    whole = {"epochs": epochs, "steps": steps, "patience": patience, "checkpoint_every": checkpoint_every}
    for name, count in whole.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    for name, amount in {"seconds": seconds, "clip": clip}.items():
        if amount is not None and not (amount > 0 and math.isfinite(amount)):
            raise ValueError(f"{name} must be positive and finite, got {amount}")
    if patience is not None and val is None:
        raise ValueError("patience needs val: without validation there is nothing to wait for")
    if schedule_every not in ("epoch", "step"):
        raise ValueError(f"schedule_every must be 'epoch' or 'step', got {schedule_every!r}")
    for name, batches in {"train": train, "val": val}.items():
        if isinstance(batches, Iterator):
            raise ValueError(f"{name} must be iterable more than once or a function, got a {type(batches).__name__}")


def _processes(devices: int) -> tuple[int, int]:
    """Processes per node and nodes: torchrun's where it started us."""
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    return devices, 1


def _check_hardware(device: str, precision: str, strategy: str, local: int, nodes: int) -> str:
    """The strategy that is used."""
    environment.check_device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    kind = torch.device(device).type
    if strategy == "fsdp" and kind != "cuda":
        raise ValueError(f"strategy 'fsdp' needs device 'cuda': Lightning shards on GPUs only, got device {device!r}")
    if kind == "cuda" and local > (1 if ":" in device else torch.cuda.device_count()):
        raise ValueError(f"devices must not exceed the GPUs that device {device!r} names, got {local}")
    if kind == "mps" and local * nodes > 1:
        raise ValueError(f"devices must be 1 on device 'mps', got {local}")
    if strategy == "auto" and local * nodes > 1:
        return "ddp"
    return strategy


def _launch(device: str, precision: str, strategy: str, local: int, nodes: int) -> Fabric:
    """Lightning's Fabric with its processes started. Imported here: a finished run needs none of it."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import, about packages that are none of ours
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import FSDPStrategy

    plan: Any = strategy
    if strategy == "fsdp":
        from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

        plan = FSDPStrategy(auto_wrap_policy=partial(size_based_auto_wrap_policy, min_num_params=1_000_000))
    place = torch.device(device)
    fabric = Fabric(
        accelerator=place.type,
        devices=local if place.index is None else [place.index],
        num_nodes=nodes,
        strategy=plan,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _place(device: str) -> torch.device:
    """The device of this process."""
    if device == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)


def _plain(**settings: Any) -> dict[str, Any]:
    """As JSON would give it back."""

    def simple(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else type(value).__name__

    result: dict[str, Any] = json.loads(json.dumps(settings, default=simple))
    return result


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    file = folder / "settings.json"
    if not file.is_file():
        return
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored == settings:
        return
    differ = []
    for name in sorted({*stored, *settings}):
        was, now = stored.get(name), settings.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
            differ += [f"{name} {key!r} was {was.get(key)}, is {now.get(key)}" for key in keys[:3]]
        elif was != now:
            differ.append(f"{name} was {was}, is {now}")
    raise ValueError(
        f"folder {folder} holds a run with other settings ({'; '.join(differ)}); give another folder or remove it"
    )


def _tidy(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left."""
    for name in ("settings.json", "history.json", "checkpoint.pt", "weights-*.pt"):
        for stale in folder.glob(f".{name}.*"):
            stale.unlink(missing_ok=True)


def _save(file: Path, state: dict[str, Any], check: bool = False) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    if check:
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise TypeError(
                "the state of model, optimizer and scheduler must be tensors and plain values to be resumable: "
                f"{str(error).splitlines()[0]}"
            ) from error
    write_atomic(file, buffer.getvalue())


def _load(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} is not a checkpoint: {str(error).splitlines()[0]}") from error
    return state


def _seed(*parts: int | str) -> None:
    """Seed torch, numpy and ``random`` with a hash of ``parts``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    # torch.manual_seed would do, but takes as long as a small step: it queues a stack trace for each absent backend.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)


def _seed_loader(batches: Iterable[Any], seed: int, epoch: int) -> None:
    """Seed the generators that a DataLoader and its sampler keep to themselves."""
    digest = hashlib.blake2b(repr((seed, "loader", epoch)).encode(), digest_size=8).digest()
    for source in (batches, getattr(batches, "sampler", None)):
        generator = getattr(source, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(int.from_bytes(digest, "little"))


def _rows(batch: Any) -> int:
    """First dimension of the first tensor in ``batch``; 1 where there is none."""
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    return 1


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, dict):
        batch = batch.values()
    elif not isinstance(batch, list | tuple):
        yield batch
        return
    for item in batch:
        yield from _leaves(item)


def _share(batch: Any, rows: int, rank: int, processes: int) -> tuple[Any, float]:
    """Every ``processes``-th row from ``rank`` on, and the weight that makes the mean of shares the mean of rows.

    A process for which no row is left takes the first with weight 0, so that all of them do the same steps.
    """
    mine = len(range(rank, rows, processes))
    part = slice(rank, None, processes) if mine else slice(0, 1)

    def cut(item: Any) -> Any:
        if isinstance(item, Tensor):
            if item.ndim and item.shape[0] != rows:
                raise ValueError(f"batch must have {rows} rows in every tensor to be shared out, got {item.shape[0]}")
            return item[part] if item.ndim else item
        if isinstance(item, dict):
            return {key: cut(value) for key, value in item.items()}
        if isinstance(item, list | tuple):
            cuts = [cut(value) for value in item]
            return type(item)(*cuts) if hasattr(item, "_fields") else type(item)(cuts)
        if item is None or isinstance(item, int | float):
            return item
        raise TypeError(f"batch must be tensors in tuples, lists or dicts to be shared out, got {type(item).__name__}")

    return cut(batch), mine * processes / rows


@contextlib.contextmanager
def _caller_randomness(device: str) -> Iterator[None]:
    """Leave the global generators as they were: what the caller draws next must not depend on how a run went."""
    python, numeric = random.getstate(), np.random.get_state()
    gpus = [_place(device)] if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numeric)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C until the loop asks for it; a second one interrupts at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield asked.is_set
        return

    def hold(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, hold)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _progress(label: str, main: bool) -> Iterator[Report]:
    """A bar on a terminal, nothing elsewhere."""
    if not main or not sys.stderr.isatty():
        yield lambda share, line: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[line]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label or "training", total=1.0, line="")
        shown = 0.0

        def report(share: float, line: str) -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown > 0.1:
                bar.update(task, completed=share, line=line)
                shown = now

        yield report
