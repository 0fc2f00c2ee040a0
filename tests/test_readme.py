import re
from pathlib import Path

import pytest

from everyformer import catalog
from everyformer.lab import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = [
    pytest.param(code, id=f"{file.parent.name}-{index}")
    for file in [ROOT / "README.md", *sorted((ROOT / "src/everyformer/papers").glob("*/README.md"))]
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run_as_they_stand(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_four_snippets_in_the_readme():
    assert README.count("```python") == 4


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.stem
)
def test_tables_are_what_the_program_writes(page):
    content = page.read_text(encoding="utf-8")
    if page.stem != "README" and not re.search("<!-- (figures|speed) ", content):
        pytest.skip("no table")
    results = catalog.recorded(catalog.shipped_results())
    assert content == tables.renewed(content, catalog.papers(), results, ROOT / "benchmarks")


def test_marks_that_are_missing_or_wrong_are_named():
    with pytest.raises(ValueError, match="marks"):
        tables.renewed("no table here", [], {})
    with pytest.raises(ValueError, match=r"sla\.nothing\.cpu"):
        tables.renewed("<!-- figures sla.nothing.cpu -->\n<!-- /figures -->", [], {})
    with pytest.raises(ValueError, match=r"nothing\.json are wanted"):
        tables.renewed("<!-- speed sla nothing -->\n<!-- /speed -->", [], {}, ROOT / "benchmarks")


def test_timings_are_told_from_what_a_bench_wrote(tmp_path):
    (tmp_path / "waves.json").write_text(
        '{"cases": [{"name": "a step", "seconds": {"everyformer": 0.002}, "ratios": {"theirs": 1.5, "others": 0.5}}]}'
    )
    content = tables.renewed("<!-- speed waves -->\n<!-- /speed -->", [], {}, tmp_path)
    assert "| `waves`: a step | 2 ms | theirs | 1.5 |\n|  |  | others | 0.5 |" in content
