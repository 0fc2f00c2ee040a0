"""Trajectories of robots: Gymnasium's MuJoCo bodies moved by policies of mixed skill, which Stable-Baselines3 trains here.

Policies and trajectories are made once and kept; a policy is kept as plain tensors, so that nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from everyformer.lab import data
from everyformer.lab.simulated import load_or_make

Act = Callable[[Float[Tensor, "episodes sensors"]], Float[Tensor, "episodes actuators"]]
Wrap = Callable[["gymnasium.Env[Any, Any]"], "gymnasium.Env[Any, Any]"]
Mode = Literal["constant", "hold", "noise"]
_FIELDS = ("observations", "actions", "rewards", "following", "terminated")


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode under Minari's names: ``steps`` actions between ``steps + 1`` observations."""

    observations: Float[Tensor, "steps_and_last sensors"]
    actions: Float[Tensor, "steps actuators"]
    rewards: Float[Tensor, " steps"]
    terminations: Bool[Tensor, " steps"]


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """Episodes one after the other, step by step; ``following`` is the observation that the action led to."""

    observations: Float[Tensor, "steps sensors"]
    actions: Float[Tensor, "steps actuators"]
    rewards: Float[Tensor, " steps"]
    following: Float[Tensor, "steps sensors"]
    terminated: Bool[Tensor, " steps"]
    episode: Int[Tensor, " steps"]

    def __len__(self) -> int:
        """How many episodes there are."""
        return int(self.episode[-1]) + 1

    def __iter__(self) -> Iterator[Episode]:
        """The episodes in order, as a Minari data set gives them."""
        for part in self._slices():
            observed = torch.cat([self.observations[part], self.following[part.stop - 1 : part.stop]])
            yield Episode(observed, self.actions[part], self.rewards[part], self.terminated[part])

    def returns(self) -> Float[Tensor, " episodes"]:
        """The sum of rewards of each episode."""
        return torch.zeros(len(self)).index_add(0, self.episode, self.rewards)

    def chosen(self, episodes: Sequence[int]) -> Trajectories:
        """Some of the episodes, in the order asked for."""
        slices = self._slices()
        steps = torch.cat([torch.arange(slices[index].start, slices[index].stop) for index in episodes])
        lengths = torch.tensor([slices[index].stop - slices[index].start for index in episodes])
        numbered = torch.arange(len(episodes)).repeat_interleave(lengths)
        fields = {name: getattr(self, name)[steps] for name in _FIELDS}
        return Trajectories(**fields, episode=numbered)

    def _slices(self) -> list[slice]:
        ends = torch.bincount(self.episode).cumsum(0).tolist()
        return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def joined(parts: Iterable[Trajectories]) -> Trajectories:
    """Several sets of trajectories as one."""
    sets = list(parts)
    starts = [0]
    for one in sets:
        starts.append(starts[-1] + len(one))
    fields = {name: torch.cat([getattr(one, name) for one in sets]) for name in _FIELDS}
    numbered = torch.cat([one.episode + start for one, start in zip(sets, starts, strict=False)])
    return Trajectories(**fields, episode=numbered)


class SensorFailure(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A sensor that has failed: it shows a ``constant``, its first reading of the episode (``hold``), or ``noise``.

    Args:
        index: which component of the observation.
        mode: what it shows.
        value: the constant, or the standard deviation of the noise.

    Raises ``ValueError`` for an index out of range, another mode, or observations that are not a flat ``Box``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], index: int, mode: Mode = "constant", value: float = 0.0) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        if not isinstance(env.observation_space, gymnasium.spaces.Box) or shape is None or len(shape) != 1:
            raise ValueError(f"env must have a flat Box of observations, got {env.observation_space}")
        if not 0 <= index < shape[0]:
            raise ValueError(f"index must be 0 to {shape[0] - 1}, got {index}")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}, got {mode!r}")
        self.index, self.mode, self.value = index, mode, value
        self._held = value

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """A new episode; a sensor that holds takes its reading here."""
        observed, info = self.env.reset(**options)
        self._held = float(observed[self.index]) if self.mode == "hold" else self.value
        return self.observation(observed), info

    def observation(self, observation: Any) -> Any:
        """The observation as the robot gets it."""
        seen = np.array(observation, copy=True)
        noisy = self.mode == "noise"
        seen[self.index] = self.value * self.unwrapped.np_random.normal() if noisy else self._held
        return seen


class Gravity(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A MuJoCo environment whose gravity is ``factor`` times its own.

    Raises ``ValueError`` for a factor that is not positive, and ``TypeError`` where there is no MuJoCo model.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], factor: float) -> None:
        super().__init__(env)
        if not factor > 0:
            raise ValueError(f"factor must be above 0, got {factor}")
        model: Any = getattr(env.unwrapped, "model", None)
        if model is None:
            raise TypeError(f"env must be a MuJoCo environment, got {env.unwrapped}")
        model.opt.gravity[:] = factor * np.array(model.opt.gravity)


def make(env: str, horizon: int | None = None) -> gymnasium.Env[Any, Any]:
    """A Gymnasium environment of flat ``Box`` spaces, ended after ``horizon`` steps in place of its own number.

    Raises ``ValueError`` for an environment that Gymnasium does not know or whose spaces are others.
    """
    try:
        with _quiet_mujoco():
            made = gymnasium.make(env, max_episode_steps=horizon)
    except gymnasium.error.Error as error:
        raise ValueError(f"env must be the name of a Gymnasium environment, got {env!r}: {error}") from error
    for space in (made.observation_space, made.action_space):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env must have flat Box spaces, got {env!r} with {space}")
    return made


@contextlib.contextmanager
def _quiet_mujoco() -> Iterator[None]:
    """MuJoCo writes that a body's file uses an old attribute to MUJOCO_LOG.TXT in the working folder: let it not."""
    import mujoco

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def rollout(envs: Sequence[gymnasium.Env[Any, Any]], act: Act, seeds: Sequence[int]) -> Trajectories:
    """One episode of each environment, side by side, so that ``act`` sees a batch.

    ``act`` gets a row for every environment at every step, the last observation again where an episode has ended.
    Observations are kept as the wrappers give them. Raises ``ValueError`` unless there is a seed for each environment.
    """
    if len(envs) != len(seeds) or not envs:
        raise ValueError(f"seeds must be one for each of at least one env, got {len(seeds)} for {len(envs)}")
    seen = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]).astype(np.float32)
    logs: list[list[tuple[Any, ...]]] = [[] for _ in envs]
    live = set(range(len(envs)))
    while live:
        actions = act(torch.from_numpy(seen.copy())).detach().cpu().float().numpy()
        for index in sorted(live):
            space: Any = envs[index].action_space
            action = np.clip(actions[index], space.low, space.high)
            after, reward, terminated, truncated, _ = envs[index].step(action)
            logs[index].append((seen[index].copy(), action, float(reward), after, bool(terminated)))
            seen[index] = after
            if terminated or truncated:
                live.discard(index)
    steps = [step for log in logs for step in log]
    observations, chosen, rewards, following, ended = zip(*steps, strict=True)
    return Trajectories(
        torch.from_numpy(np.stack(observations)),
        torch.from_numpy(np.stack(chosen).astype(np.float32)),
        torch.tensor(rewards, dtype=torch.float32),
        torch.from_numpy(np.stack(following).astype(np.float32)),
        torch.tensor(ended),
        torch.arange(len(envs)).repeat_interleave(torch.tensor([len(log) for log in logs])),
    )


def evaluate(
    env: str, act: Act, *, episodes: int, seed: int, horizon: int | None = None, wrap: Wrap = lambda env: env
) -> Float[Tensor, " episodes"]:
    """Returns of ``act`` in fresh episodes, each environment wrapped by ``wrap``."""
    envs = [wrap(make(env, horizon)) for _ in range(episodes)]
    try:
        return rollout(envs, act, range(seed, seed + episodes)).returns()
    finally:
        for one in envs:
            one.close()


@dataclasses.dataclass(frozen=True)
class Domain:
    """An environment, and how policies of several skills are trained and sampled in it.

    ``steps`` of training are cut into ``stages`` of equal length, each of which leaves a policy; every policy gives
    ``episodes`` episodes of ``horizon`` steps, an equal number in which it samples and in which it acts at its best.
    """

    env: str
    algorithm: Literal["PPO", "SAC"]
    steps: int
    stages: int
    episodes: int
    horizon: int
    hidden: int = 64
    discount: float = 0.99
    seed: int = 0


_OPTIONS: dict[str, dict[str, Any]] = {
    "PPO": {"n_steps": 256, "batch_size": 128, "n_epochs": 5, "learning_rate": 6e-4},
    "SAC": {"learning_starts": 1000, "batch_size": 128, "learning_rate": 1e-3},
}

_ENVS = {"PPO": 8, "SAC": 1}  # environments side by side in training


def collected(domain: Domain) -> list[Trajectories]:
    """The trajectories of each policy of a domain, the least trained first; made once and kept.

    Raises ``ValueError`` for an unknown environment, no stages, or episodes that are no positive even number.
    """
    if domain.stages < 1 or domain.episodes < 2 or domain.episodes % 2:
        raise ValueError(
            f"domain must have at least one stage and a positive even number of episodes, "
            f"got {domain.stages} and {domain.episodes}"
        )
    make(domain.env).close()
    weights = policies(domain)

    def sample(stage: int) -> dict[str, Tensor]:
        learner = _learner(domain)
        learner.policy.load_state_dict({name: tensor[stage] for name, tensor in weights.items()})
        seed = 10_000 * (domain.seed + 1) + domain.episodes * stage
        half = domain.episodes // 2
        found = joined(
            _episodes(domain, learner, range(start, start + half), greedy)
            for start, greedy in ((seed, False), (seed + half, True))
        )
        fields = {name: getattr(found, name) for name in (*_FIELDS, "episode")}
        return {**fields, "stage": torch.full_like(found.episode, stage)}

    with _own_chance(domain.seed):
        made = load_or_make(
            f"trajectories-{domain.env}", sample, parts=domain.stages, settings=_settings(domain), code=_CODE
        )
    stage = made.pop("stage")
    return [
        Trajectories(**{name: tensor[stage == part] for name, tensor in made.items()}) for part in range(domain.stages)
    ]


def policies(domain: Domain) -> dict[str, Float[Tensor, "stages ..."]]:
    """The weights of a domain's policies as Stable-Baselines3 names them, one row a stage; trained once and kept."""

    def train(_: int) -> dict[str, Tensor]:
        learner = _learner(domain)
        states = []
        for stage in range(domain.stages):
            learner.learn(domain.steps // domain.stages, reset_num_timesteps=stage == 0)
            states.append({name: tensor.clone() for name, tensor in learner.policy.state_dict().items()})
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    with _own_chance(domain.seed):
        return load_or_make(f"policies-{domain.env}", train, parts=1, settings=_settings(domain), code=_CODE)


def write_minari(trajectories: Iterable[Any], name: str, *, env: str, folder: Path | None = None) -> Any:
    """Write episodes as a local Minari data set called ``name`` (such as ``pasta/hopper-v0``), and return it.

    ``folder`` takes the place of Minari's own folder; it is the library's cache unless given. Raises ``ValueError``
    (Minari's own) where a set of that name is there already.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = [
        EpisodeBuffer(
            id=number,
            observations=np.asarray(one.observations),  # type: ignore[arg-type]
            actions=np.asarray(one.actions),  # type: ignore[arg-type]
            rewards=np.asarray(one.rewards),  # type: ignore[arg-type]
            terminations=np.asarray(one.terminations),  # type: ignore[arg-type]
            truncations=_cut(one),  # type: ignore[arg-type]
        )
        for number, one in enumerate(trajectories)
    ]
    space: Any = make(env).observation_space
    as_kept = gymnasium.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    with _minari_folder(folder), warnings.catch_warnings(), _quiet_mujoco():
        warnings.simplefilter("ignore")
        return minari.create_dataset_from_buffers(
            name, buffers, env=env, observation_space=as_kept, algorithm_name="mixed"
        )


def _cut(episode: Any) -> Any:
    """Whether the episode was cut off at a step: at the last one, unless it ended by itself."""
    cut = np.zeros(len(episode.rewards), dtype=bool)
    cut[-1] = not episode.terminations[-1]
    return cut


def read_minari(name: str, folder: Path | None = None) -> Trajectories:
    """A local Minari data set of flat observations and actions; see :func:`write_minari`.

    Raises ``ValueError`` where there is none of that name, or it has no numbers in a row for observations and actions.
    """
    import minari

    with _minari_folder(folder) as place:
        try:
            found = minari.load_dataset(name)
        except FileNotFoundError as error:
            raise ValueError(f"name must be a data set under {place}, got {name!r}") from error
        parts = []
        for one in found.iterate_episodes():
            observed, actions = (np.asarray(field, dtype=np.float32) for field in (one.observations, one.actions))
            if observed.ndim != 2 or actions.ndim != 2:
                raise ValueError(f"name must be a data set of flat observations and actions, got {name!r}")
            seen, chosen = torch.from_numpy(observed), torch.from_numpy(actions)
            rewards = torch.from_numpy(np.asarray(one.rewards, dtype=np.float32))
            ended = torch.from_numpy(np.asarray(one.terminations, dtype=bool))
            number = torch.zeros(len(chosen), dtype=torch.long)
            parts.append(Trajectories(seen[:-1], chosen, rewards, seen[1:], ended, number))
    return joined(parts)


@contextlib.contextmanager
def _minari_folder(folder: Path | None) -> Iterator[Path]:
    """Minari's folder, which it takes from the environment, set for a while."""
    place = data.cache() / "minari" if folder is None else folder
    before = os.environ.get(_MINARI)
    os.environ[_MINARI] = str(place)
    try:
        yield place
    finally:
        os.environ.pop(_MINARI)
        if before is not None:
            os.environ[_MINARI] = before


def _learner(domain: Domain) -> Any:
    """An untrained Stable-Baselines3 algorithm of the domain."""
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv

    hidden = [domain.hidden, domain.hidden]
    options = {**_OPTIONS[domain.algorithm], "gamma": domain.discount, "policy_kwargs": {"net_arch": hidden}}
    envs = DummyVecEnv([functools.partial(make, domain.env)] * _ENVS[domain.algorithm])
    algorithm = getattr(stable_baselines3, domain.algorithm)
    return algorithm("MlpPolicy", envs, seed=domain.seed, device="cpu", **options)


def _episodes(domain: Domain, learner: Any, seeds: range, greedy: bool) -> Trajectories:
    def act(seen: Tensor) -> Tensor:
        return torch.from_numpy(learner.predict(seen.numpy(), deterministic=greedy)[0])

    return rollout([make(domain.env, domain.horizon) for _ in seeds], act, seeds)


def _settings(domain: Domain) -> dict[str, Any]:
    import mujoco
    import stable_baselines3

    versions = {"stable_baselines3": stable_baselines3.__version__, "mujoco": mujoco.__version__}
    return {**dataclasses.asdict(domain), **versions, "gymnasium": gymnasium.__version__}


@contextlib.contextmanager
def _own_chance(seed: int) -> Iterator[None]:
    """Stable-Baselines3 seeds everybody's random numbers: give them back as they were."""
    kept, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(numbers)


_CODE = (sys.modules[__name__],)
_MINARI = "MINARI_DATASETS_PATH"
