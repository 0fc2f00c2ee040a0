import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from everyformer.lab.trajectories import Trajectories
from everyformer.papers.pasta import ComponentTokenizer, Pasta, Size

SENSORS, ACTUATORS = 4, 2


def wheels(steps=240, sensors=SENSORS, actuators=ACTUATORS):
    """A log in which every number follows from the others: phases of one wheel, and actions that read them."""
    at = torch.arange(steps) / 5.0
    seen = torch.stack([(at + phase).sin() for phase in range(sensors)], 1)
    acted = seen[:, :actuators] * 0.8
    return Trajectories(
        seen, acted, torch.ones(steps), seen.roll(-1, 0), torch.zeros(steps).bool(), torch.arange(steps) // 60
    )


def fitted(sensors=SENSORS, actuators=ACTUATORS, **options):
    spaces = Box(-np.inf, np.inf, (sensors,)), Box(-1.0, 1.0, (actuators,))
    chosen = {"bins": 32, "mu": 10, "limit": 10, **options}
    return ComponentTokenizer(*spaces, **chosen).fit(wheels(sensors=sensors, actuators=actuators))


@pytest.fixture
def log():
    return wheels()


@pytest.fixture
def build():
    """Makes a small model of 4 sensors and 2 actuators, unless given tokenizers."""

    def made(objective="c-gpt", tokenizer=None, *, size=None, **options):
        chosen = size or Size(layers=2, dim=32, heads=2, tokens=24)
        torch.manual_seed(0)
        model = Pasta(tokenizer or fitted(), size=chosen, objective=objective, **{"dropout": 0.0, **options})
        for parameter in model.parameters():  # so that nothing is zero by its first weights
            parameter.data += 0.05 * torch.randn_like(parameter)
        return model.eval()

    return made


@pytest.fixture
def two(build):
    return lambda objective="c-bert": build(objective, {"wheel": fitted(), "tricycle": fitted(3, 1)})
