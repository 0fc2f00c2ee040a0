import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, LCMScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from everyformer.papers.qsched import Coefficients, QSchedScheduler, calibrate, jaq_loss

BEST = Coefficients.line(3, model=0.9, sample=1.05)


def coefficients_as_images(prompts, scheduler, generator):
    """A generator whose 'images' are the coefficients themselves."""
    return torch.tensor([scheduler.coefficients.model, scheduler.coefficients.sample])


def closeness(images, prompts):
    return -float((images - coefficients_as_images(prompts, QSchedScheduler.wrap(LCMScheduler(), BEST), None)).norm())


def search(**options):
    settings = {"steps": 3, "budget": 40, "scheduler": LCMScheduler(), "progress": False}
    return calibrate(coefficients_as_images, ["a"], closeness, **{**settings, **options})


@pytest.mark.parametrize(("method", "within"), [("cmaes", 0.03), ("tpe", 0.06), ("grid", 0.05)])
def test_every_method_finds_the_best_line(method, within):
    found = search(method=method)
    assert len(found.history) == 40
    assert abs(found.coefficients.model[0] - 0.9) < within
    assert abs(found.coefficients.sample[0] - 1.05) < within
    assert found.coefficients.model[-1] == found.coefficients.sample[-1] == 1.0
    assert found.score == max(found.history) > found.uncalibrated == found.history[0]


def test_a_grid_tries_evenly_spaced_values_and_the_scheduler_as_it_was():
    tried = []

    def record(prompts, scheduler, generator):
        tried.append((scheduler.coefficients.model[0], scheduler.coefficients.sample[0]))
        return coefficients_as_images(prompts, scheduler, generator)

    calibrate(
        record, ["a"], closeness, steps=3, budget=10, scheduler=LCMScheduler(), method="grid", low=0.8, high=1.2,
        progress=False,
    )  # fmt: skip
    expected = [(1.0, 1.0)] + [(m, s) for m in (0.8, 1.0, 1.2) for s in (0.8, 1.0, 1.2)]
    assert tried == [pytest.approx(pair) for pair in expected]


def test_the_scheduler_as_it_was_is_never_left_for_worse():
    def worse(images, prompts):
        return -float((images - 1).abs().sum())

    found = calibrate(coefficients_as_images, ["a"], worse, steps=3, budget=8, scheduler=LCMScheduler(), progress=False)
    assert found.coefficients == Coefficients.line(3)
    assert found.score == found.uncalibrated == 0


def test_free_ends_move_the_last_step():
    found = search(free_ends=True, budget=12)
    assert found.coefficients.model[-1] != 1.0


@pytest.mark.parametrize("method", ["cmaes", "tpe", "grid"])
def test_it_goes_on_where_it_was_left(method, tmp_path):
    """Killed in the middle of a trial, it keeps what was done and tries the unfinished one again."""
    calls = []

    def killed(prompts, scheduler, generator):
        calls.append(scheduler.coefficients)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return coefficients_as_images(prompts, scheduler, generator)

    settings = {"steps": 3, "budget": 10, "scheduler": LCMScheduler(), "method": method, "progress": False}
    file = tmp_path / "new" / "study.journal"
    with pytest.raises(KeyboardInterrupt):
        calibrate(killed, ["a"], closeness, storage=file, **settings)
    found = calibrate(killed, ["a"], closeness, storage=file, **settings)
    assert len(calls) == 4 + 1 + 6
    assert len(found.history) == 10
    if method == "grid":
        whole = calibrate(coefficients_as_images, ["a"], closeness, **settings)
        assert found.coefficients == whole.coefficients
        assert sorted(found.history) == sorted(whole.history)
    again = calibrate(killed, ["a"], closeness, storage=file, **settings)
    assert again == found
    assert len(calls) == 11
    with pytest.raises(ValueError, match="holds a calibration of other prompts, seed"):
        calibrate(killed, ["b"], closeness, storage=file, seed=1, **settings)


def test_every_trial_sees_the_same_noise():
    noises = []

    def noisy(prompts, scheduler, generator):
        noises.append(torch.randn(3, generator=generator))
        return coefficients_as_images(prompts, scheduler, generator)

    calibrate(noisy, ["a"], closeness, steps=3, budget=4, scheduler=LCMScheduler(), progress=False)
    assert all(torch.equal(noise, noises[0]) for noise in noises)


class TinyPipeline(DiffusionPipeline):
    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, prompt, num_inference_steps, generator, strength=1.0):
        self.scheduler.set_timesteps(num_inference_steps)
        images = torch.randn(len(prompt), 1, 4, 4, generator=generator)
        for timestep in self.scheduler.timesteps:
            images = self.scheduler.step(strength * images, timestep, images, generator=generator).prev_sample
        return ImagePipelineOutput(images)


def test_a_pipeline_of_diffusers_is_calibrated_and_keeps_its_scheduler(capsys):
    pipe = TinyPipeline(LCMScheduler())
    before = pipe.scheduler
    found = calibrate(
        pipe, ["a", "b"], lambda images, prompts: -float(images.square().mean()), steps=3, budget=9, strength=0.5
    )
    assert found.score > found.uncalibrated
    assert pipe.scheduler is before
    shown = capsys.readouterr()
    assert "calibration" in shown.err and not shown.out
    pipe.scheduler = QSchedScheduler.wrap(pipe.scheduler, found.coefficients)
    images = pipe(["a", "b"], 3, torch.Generator().manual_seed(0), strength=0.5).images
    assert -float(images.square().mean()) == pytest.approx(found.score)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"method": "random"}, "method must be cmaes, tpe or grid, got 'random'"),
        ({"low": 1.05}, "low and high must be positive and enclose 1, got 1.05"),
        ({"method": "grid", "budget": 4}, "budget must allow two values per coefficient"),
    ],
)
def test_what_cannot_be_searched(options, message):
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_prompts_and_a_supported_scheduler_are_needed():
    with pytest.raises(ValueError, match="prompts must hold at least one"):
        calibrate(coefficients_as_images, [], closeness, steps=3, budget=2, scheduler=LCMScheduler())
    with pytest.raises(TypeError, match="scheduler must be given"):
        search(scheduler=None)
    with pytest.raises(TypeError, match="got DDIMScheduler"):
        search(scheduler=DDIMScheduler())


def test_a_score_that_is_not_finite_is_named(tmp_path):
    def broken(images, prompts):
        return float("nan")

    with pytest.raises(ValueError, match=r"score must be finite, got nan from .*broken at Coefficients\(model"):
        calibrate(coefficients_as_images, ["a"], broken, steps=3, budget=3, scheduler=LCMScheduler(), progress=False)
    with pytest.raises(ValueError, match=r"quality must give finite scores, got nan from .*broken"):
        jaq_loss(lambda images, prompts: 1.0, broken)(torch.zeros(1), ["a"])
    with pytest.raises(ValueError, match="compatibility must give finite scores, got inf"):
        jaq_loss(lambda images, prompts: torch.tensor([1.0, torch.inf]), broken)(torch.zeros(2), ["a", "b"])


def test_jaq_weighs_quality_by_k():
    score = jaq_loss(lambda images, prompts: torch.tensor([0.2, 0.4]), lambda images, prompts: 2.0, k=0.5)
    assert score(torch.zeros(2), ["a", "b"]) == pytest.approx(0.3 + 0.5 * 2.0)
