"""The rooms of a new paper, laid out for `everyformer new`."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from everyformer.catalog import Paper

_CARD = Template('''"""$title (arXiv $arxiv)."""

from everyformer.catalog import Claim, Paper, lazy

PAPER = Paper(
    slug="$slug",
    title="$title",
    arxiv="$arxiv",
    published=None,
    authors=None,
    organisation=None,
    summary="Two or three sentences in your own words: what it does, what for, what a user gets.",
    code=None,
    licence="no code known",
    tags=$tags,
    claims=(
        Claim(
            name="main",
            statement="One sentence: what the paper says that can be measured.",
            metric="the metric",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="the paper's data set, model size and table number",
            # Add method, baseline, threshold=Threshold(kind, size), run="main" and plan="plan_main" once claim.py has
            # them, and declare the threshold before the first run.
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(__name__, {"$name": "model"})
''')

_MODEL = Template('''"""$title (arXiv $arxiv): the contribution itself, to be read beside the paper."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class $name(nn.Module):
    """One line: what it is, and the equation it comes from.

    Args:
        dim: width of a token, at least 1.

    Raises:
        ValueError: ``dim`` below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens in, tokens out."""
        return x + self.proj(x)
''')

_CLAIM = Template('''"""The claims of $slug: method, baseline, data, measurement.

Each function takes a ``Job`` and returns a ``Measurement`` of one seed, method and baseline under the same budget:

    def main(job: Job) -> Measurement: ...
    def plan_main() -> Plan: ...
"""
''')

_README = Template("""# $title

`$slug`, arXiv $arxiv. One sentence on what it is.

```python
from everyformer.papers.$slug import $name
```

`everyformer run $slug` checks its claims; the figures are in `results/`.
""")

_TEST = Template("""import torch

from everyformer.papers.$slug import $name


def test_keeps_the_shape_and_reloads_strictly():
    torch.manual_seed(0)
    model, x = $name(8), torch.randn(2, 5, 8)
    assert model(x).shape == x.shape
    again = $name(8)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x), model(x))


def test_compiles_without_a_break():
    torch.manual_seed(0)
    model, x = $name(8), torch.randn(2, 5, 8)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
""")


def lay_out(slug: str, *, arxiv: str, title: str, tags: tuple[str, ...], root: Path | None = None) -> list[Path]:
    """Write the rooms of paper ``slug`` into the checkout at ``root`` and return the files.

    The result imports and its tests pass; the model is a residual linear layer to be replaced.

    Raises:
        ValueError: a bad slug, arXiv id or tag, a slug that exists, or ``root`` is not a checkout.
    """
    root = root or Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file() or not (root / "src" / "everyformer").is_dir():
        raise ValueError(f"root must be a checkout of everyformer (it is where papers are added), got {root}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise ValueError(f"slug must be lower-case letters, digits and underscores, got {slug!r}")
    if '"' in title or not title.strip():
        raise ValueError(f"title must be given without double quotes, got {title!r}")
    folder = root / "src" / "everyformer" / "papers" / slug
    if folder.exists():
        raise ValueError(f"slug {slug!r} exists already: {folder}")
    Paper(slug, title, arxiv, None, None, None, "", None, "", tags, ())
    name = "".join(part.capitalize() for part in slug.split("_"))
    words = {"slug": slug, "arxiv": arxiv, "title": title, "name": name}
    quoted = ", ".join(f'"{tag}"' for tag in tags)
    files = {
        folder / "__init__.py": _CARD.substitute(words, tags=f"({quoted},)"),
        folder / "model.py": _MODEL.substitute(words),
        folder / "claim.py": _CLAIM.substitute(words),
        folder / "README.md": _README.substitute(words),
        root / "tests" / "papers" / slug / "test_model.py": _TEST.substitute(words),
    }
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return list(files)
