import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from torch import nn

from everyformer.lab import train as training
from everyformer.lab.train import fit


def make_model():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


X = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
Y = X.sum(1, keepdim=True) + 0.1 * torch.randn(96, 1, generator=torch.Generator().manual_seed(2))


def batches(epoch):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(epoch))
    return ((X[index], Y[index]) for index in order.split(16))


def held_out():
    return ((X[index], Y[index]) for index in torch.arange(64, 96).split(12))


def loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x).float(), y)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def train(folder, **changes):
    model = make_model()
    options = {"epochs": 6, "validation": held_out, "scheduler": halving, "seed": 3, "optimizer": adam}
    history = fit(model, loss, batches, folder=folder, **{**options, **changes})
    return model, history


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_keeps_the_best_weights(tmp_path):
    model, history = train(tmp_path, scheduler=None, epochs=30)
    assert history.best < 0.5 * history.validation[0]
    assert history.best == min(history.validation)
    model.eval()
    score = sum(loss(model, b).item() * len(b[0]) for b in held_out()) / 32
    assert score == pytest.approx(history.best, rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    one, first = train(tmp_path / "a")
    two, second = train(tmp_path / "b")
    other, _ = train(tmp_path / "c", seed=4)
    assert same(one, two)
    assert first.validation == second.validation
    assert not same(one, other)


@pytest.mark.parametrize("stop", [1, 6, 11, 21])
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, stop, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", -1.0)
    whole, history = train(tmp_path / "whole")

    class Killed(BaseException):
        pass

    calls = 0

    def dies(model, batch):
        nonlocal calls
        if model.training:
            calls += 1
            if calls == stop:
                raise Killed
        return loss(model, batch)

    with pytest.raises(Killed):
        fit(make_model(), dies, batches, epochs=6, validation=held_out, scheduler=halving, seed=3, optimizer=adam,
            folder=tmp_path / "cut")  # fmt: skip
    again, resumed = train(tmp_path / "cut")
    assert same(whole, again)
    assert resumed.validation == history.validation
    assert resumed.train == history.train
    assert resumed.steps == history.steps


def test_sigkill_loses_nothing_that_was_saved(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, signal
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import test_train as t
        calls = 0
        def dies(model, batch):
            global calls
            calls += model.training
            if calls == 15:
                os.kill(os.getpid(), signal.SIGKILL)
            return t.loss(model, batch)
        from pathlib import Path
        t.fit(t.make_model(), dies, t.batches, epochs=6, validation=t.held_out, scheduler=t.halving, seed=3,
              optimizer=t.adam, folder=Path({str(tmp_path / "cut")!r}))
        """)
    )
    assert subprocess.run([sys.executable, script]).returncode == -signal.SIGKILL
    again, resumed = train(tmp_path / "cut")
    whole, history = train(tmp_path / "whole")
    assert same(whole, again)
    assert resumed.train == history.train


def test_a_finished_training_returns_at_once(tmp_path):
    one, first = train(tmp_path)
    again, second = train(tmp_path, epochs=6)
    assert same(one, again)
    assert first == second


def test_ctrl_c_saves_and_is_passed_on(tmp_path):
    def slow(model, batch):
        time.sleep(0.02)
        return loss(model, batch)

    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), slow, batches, epochs=1000, seed=3, optimizer=adam, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "state.pt").is_file()


def test_patience_ends_a_training_that_no_longer_improves(tmp_path):
    _, history = train(tmp_path, epochs=500, patience=2, scheduler=None)
    assert len(history.validation) < 500
    assert len(history.validation) - 1 - history.best_epoch == 2


def test_clipped_gradients_are_no_longer_than_told(tmp_path):
    moved = {}
    for name, changes in (("free", {}), ("clipped", {"clip": 0.1})):
        before = torch.nn.utils.parameters_to_vector(make_model().parameters()).detach()
        model, _ = train(
            tmp_path / name,
            epochs=None,
            steps=1,
            optimizer=lambda p: torch.optim.SGD(p, 1.0),
            scheduler=None,
            **changes,
        )
        moved[name] = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    torch.testing.assert_close(moved["clipped"].norm(), torch.tensor(0.1))
    torch.testing.assert_close(moved["clipped"] / 0.1, moved["free"] / moved["free"].norm())


def test_budgets_of_steps_and_seconds_end_a_training(tmp_path):
    _, history = train(tmp_path / "steps", epochs=None, steps=7)
    assert history.steps == 7
    _, history = train(tmp_path / "seconds", epochs=None, seconds=0.3)
    assert history.seconds >= 0.3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains(tmp_path, precision):
    def step(model, batch):
        x, y = batch
        return nn.functional.mse_loss(model(x.to(next(model.parameters()).dtype)).float(), y)

    history = fit(make_model(), step, batches, epochs=8, seed=0, optimizer=adam, folder=tmp_path, precision=precision)
    assert history.train[-1] < history.train[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "epochs, steps or seconds must be given"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"precision": "8"}, "precision must be one of 32-true"),
        ({"strategy": "magic"}, "strategy must be one of auto, ddp, fsdp"),
        ({"strategy": "fsdp"}, "needs device cuda"),
    ],
)
def test_bad_requests_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **changes)


def test_a_folder_of_another_training_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match="of other seed"):
        train(tmp_path, seed=9)


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 0, step 0"):
        fit(
            make_model(),
            lambda *a: loss(*a) * float("nan"),
            batches,
            epochs=1,
            seed=0,
            optimizer=adam,
            folder=tmp_path,
        )


def test_two_processes_give_the_figures_of_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import torch
        import test_train as t
        model = t.make_model()
        model[2].p = 0.0
        history = t.fit(model, t.loss, t.batches, epochs=3, validation=t.held_out, seed=3, optimizer=t.adam,
                        folder=Path(sys.argv[1]), strategy=sys.argv[2])
        torch.save({{"weights": model.state_dict(), "validation": history.validation}},
                   f"{{sys.argv[1]}}-{{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}}.pt")
        """)
    )
    both = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*both, script, str(tmp_path / "two"), "ddp"], check=True)
    subprocess.run([sys.executable, script, str(tmp_path / "one"), "auto"], check=True)
    one = torch.load(tmp_path / "one-0.pt", weights_only=True)
    for rank in (0, 1):
        two = torch.load(tmp_path / f"two-{rank}.pt", weights_only=True)
        assert two["validation"] == pytest.approx(one["validation"], rel=1e-5)
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], tensor, atol=1e-5, rtol=1e-5)
