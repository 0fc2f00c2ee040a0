"""The claims of HALO: a small LLaMA fine-tuned in few bits, and what a step costs in time, memory and communication."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from everyformer.catalog import Job, Measurement, Panel, Plan, Scale
from everyformer.lab import text
from everyformer.lab.measure import median, peak_extra_bytes, side_by_side
from everyformer.papers.halo import communication as sharded
from everyformer.papers.halo.method import convert

LEVELS = (0, 1, 2)
OUTLIERS, FACTOR = 4, 30.0  # channels of each kind, and how much larger they become
# A weight behind an outlier channel moves the function FACTOR times as far: there this is the rate of pretraining.
LEARNING_RATE = 5e-5
# LLaMA-3 8B: layers, width, feed-forward, width of keys and values, vocabulary (its published configuration).
BLOCKS, WIDTH, HIDDEN, KEYS, VOCABULARY = 32, 4096, 14336, 1024, 128_256


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and tested."""

    steps: int
    pieces: int


SIZES = {"smoke": Size(4, 8), "cpu": Size(60, 128), "paper": Size(600, 1024)}


@torch.no_grad()
def add_outliers(model: nn.Module, seed: int) -> nn.Module:
    """Make a few channels large, in place, as they are in large models; the function stays the same.

    The weights of each norm grow by ``FACTOR`` in ``OUTLIERS`` channels, and the layers that read them shrink in those
    columns; likewise rows of the feed-forward's ``up_proj`` and columns of its ``down_proj``.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in model.model.layers:  # type: ignore[operator,union-attr]
        attention, feed_forward = block.self_attn, block.mlp
        for grown, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (feed_forward.gate_proj, feed_forward.up_proj)),
            (feed_forward.up_proj, (feed_forward.down_proj,)),
        ):
            channels = torch.randperm(len(grown.weight), generator=generator)[:OUTLIERS]
            grown.weight[channels] *= FACTOR
            for reader in readers:
                reader.weight[:, channels] /= FACTOR
    return model


def fine_tuned(job: Job, outliers: bool, variants: dict[str, dict[str, Any] | None]) -> dict[str, float]:
    """Test loss after each variant's fine-tuning from the same weights, with the same data, steps and recipe, in bf16.

    A variant is what :func:`convert` is called with, or ``None`` for bf16 itself.
    """
    size, smoke = SIZES[job.scale], job.scale == "smoke"
    corpus = text.corpus("made_up" if smoke else "wikitext2")
    found = {}
    for name, options in variants.items():
        model = text.pretrained("llama", scale=job.scale, seed=job.seed).to(job.device)
        model = add_outliers(model, job.seed) if outliers else model
        model = model if options is None else convert(model, **options)
        text.fit(
            model, corpus.train, steps=size.steps, folder=job.folder / name.replace(" ", "_"), seed=job.seed,
            learning_rate=LEARNING_RATE, label=name, device=job.device, precision="bf16-mixed",
        )  # fmt: skip
        with torch.autocast(torch.device(job.device).type, torch.bfloat16):
            found[name] = text.evaluate(model, corpus.test, pieces=size.pieces)
    return found


def _variants(*pairs: tuple[int, str]) -> dict[str, dict[str, Any] | None]:
    """bf16, and the given levels with their formats."""
    rounded = {f"level {level} {format}": {"level": level, "format": format} for level, format in pairs}
    return {"bf16": None, **rounded}


def _above_bf16(losses: dict[str, float]) -> tuple[dict[str, float], dict[str, float], Panel]:
    """By how many per cent each loss is above that of bf16; these and the losses as extras, and as bars."""
    above = {name: 100 * (loss / losses["bf16"] - 1) for name, loss in losses.items() if name != "bf16"}
    extras = {f"loss, {name}": loss for name, loss in losses.items()}
    extras |= {f"above bf16 (%), {name}": share for name, share in above.items()}
    lines = {"above bf16": ([float(place) for place in range(len(above))], list(above.values()))}
    return above, extras, Panel("Test loss above that of bf16", "", "%", lines, kind="bar", ticks=list(above))


def accuracy(job: Job) -> Measurement:
    """With outliers: every level in eight bits, the ablation of the recipe."""
    losses = fine_tuned(job, True, _variants(*((level, format) for format in ("int8", "fp8") for level in LEVELS)))
    above, extras, panel = _above_bf16(losses)
    return Measurement(above["level 2 int8"], above["level 0 int8"], extras, (panel,))


def natural(job: Job) -> Measurement:
    """Without added outliers: rounding alone beside all rotations."""
    losses = fine_tuned(job, False, _variants((0, "int8"), (2, "int8"), (0, "fp8"), (2, "fp8")))
    above, extras, panel = _above_bf16(losses)
    return Measurement(above["level 2 int8"], above["level 0 int8"], extras, (panel,))


def rotation(job: Job) -> Measurement:
    """With outliers: the loss of rounding alone beside that of all rotations; every level in six bits as extras."""
    losses = fine_tuned(job, True, _variants((0, "int8"), (2, "int8"), *((level, "fp6") for level in LEVELS)))
    _, extras, panel = _above_bf16(losses)
    return Measurement(losses["level 2 int8"], losses["level 0 int8"], extras, (panel,))


def layers_of_llama(scale: Scale) -> nn.Module:
    """Layers of a LLaMA in bf16, without its large vocabulary: two narrow ones, or three of LLaMA-3 8B's."""
    if scale != "paper":
        width = 128 if scale == "smoke" else 1024
        return text.build("llama", width=width, layers=2, heads=width // 64).bfloat16()
    import transformers

    return transformers.LlamaForCausalLM(  # type: ignore[no-any-return]
        transformers.LlamaConfig(
            vocab_size=text.BYTES, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=3,
            num_attention_heads=32, num_key_value_heads=8, use_cache=False,
        )
    ).bfloat16()  # fmt: skip


def training(model: nn.Module, batch: int) -> Callable[[], None]:
    """A forward and backward pass on a batch of bytes."""
    pieces = torch.randint(text.BYTES, (batch, text.LENGTH + 1), device=next(model.parameters()).device)

    def run() -> None:
        model.zero_grad()
        text.loss(model, pieces).backward()

    return run


def speed(job: Job) -> Measurement:
    """Time of a training step, converted beside bf16; the memory it takes, and a single product, as extras."""
    rounds, batch = {"smoke": (2, 8), "cpu": (5, 8), "paper": (20, 128)}[job.scale]
    torch.manual_seed(job.seed)
    runs = {"bf16": training(layers_of_llama(job.scale).to(job.device), batch)}
    for level in LEVELS:
        model = convert(layers_of_llama(job.scale).to(job.device), level=level, format="int8")
        runs[f"HALO-{level}, int8"] = training(model, batch)
    seconds = {name: median(times) for name, times in side_by_side(runs, rounds=rounds, device=job.device).items()}
    speedups = {name: seconds["bf16"] / value for name, value in seconds.items()}
    extras = {f"speed-up, {name}": value for name, value in speedups.items()}
    extras |= {f"peak memory of a step (MiB), {name}": peak_extra_bytes(run, job.device) / 2**20
               for name, run in runs.items()}  # fmt: skip
    extras |= _products({"smoke": 128, "cpu": 1024, "paper": WIDTH}[job.scale], rounds, job.device)
    places = [float(index) for index in range(len(speedups))]
    panel = Panel("Training step", "", "x bf16", {"speed-up": (places, list(speedups.values()))}, kind="bar",
                  ticks=list(speedups))  # fmt: skip
    return Measurement(speedups["HALO-2, int8"], 1.0, extras, (panel,))


def _products(width: int, rounds: int, device: str) -> dict[str, float]:
    """How much faster a forward pass of one int8 layer is than those in bf16 and in float32."""
    x = torch.randn(1024, width, device=device)
    layer = nn.Linear(width, width, bias=False, device=device)
    half = nn.Linear(width, width, bias=False, device=device, dtype=torch.bfloat16)
    rounded = nn.Linear(width, width, bias=False, device=device, dtype=torch.bfloat16)
    convert(rounded, level=0, format="int8")
    x16 = x.bfloat16()
    with torch.no_grad():
        times = side_by_side(
            {"int8": lambda: rounded(x16), "bf16": lambda: half(x16), "float32": lambda: layer(x)},
            rounds=4 * rounds, device=device,
        )  # fmt: skip
    return {f"int8 layer over {name} (x)": median(times[name]) / median(times["int8"]) for name in ("bf16", "float32")}


def communication(job: Job) -> Measurement:
    """Bytes gathered in a step by two processes (the paper: four); all bytes, and the losses, as extras."""
    found = sharded.measure(4 if job.scale == "paper" else 2, job.scale, job.seed, steps=2)
    extras = {f"{kind} ({'nats' if kind == 'loss' else 'MiB'}), {name}": value / (1 if kind == "loss" else 2**20)
              for name, values in found.items() for kind, value in values.items()}  # fmt: skip
    gathered = {name: values["gathered"] / 2**20 for name, values in found.items()}
    return Measurement(gathered["HQ-FSDP"], gathered["bf16"], extras)


def _plan(claim: str, notes: str) -> Plan:
    linear = BLOCKS * (2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * HIDDEN)
    parameters = linear + 2 * VOCABULARY * WIDTH
    tokens = 32 * 512
    # Weights, gradients and two moments in bf16, and the rounded inputs of the layers' four kinds of projection.
    memory = 8 * parameters + tokens * BLOCKS * (3 * WIDTH + HIDDEN)
    launch = f"everyformer run {claim} --scale paper --device cuda"
    return Plan(parameters, 6.0 * (linear + VOCABULARY * WIDTH) * tokens, memory, launch, notes)


FINE_TUNING = (
    "the paper fine-tunes LLaMA-3 8B on GSM8k, ViGGO and SQL; the launch fine-tunes the small LLaMA for longer"
)


def plan_speed() -> Plan:
    """One step of LLaMA-3 8B at the authors' batch of 32."""
    return _plan("halo.speed", "the paper's 1.31x is of LLaMA-3 8B on RTX 4090; the launch times three of its layers")


def plan_accuracy() -> Plan:
    """As for the speed: the paper fine-tunes the same model."""
    return _plan("halo.accuracy", FINE_TUNING)


def plan_rotation() -> Plan:
    """The same."""
    return _plan("halo.rotation", FINE_TUNING)


def plan_natural() -> Plan:
    """The same."""
    return _plan("halo.natural", FINE_TUNING)


def plan_communication() -> Plan:
    """The same model over four processes."""
    return _plan(
        "halo.communication", "the paper shards LLaMA-3 8B over four RTX 4090; the launch counts bytes over gloo"
    )
