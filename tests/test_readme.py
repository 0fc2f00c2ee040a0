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


def test_there_are_three_snippets_in_the_readme():
    assert README.count("```python") == 3


def test_the_table_is_what_the_program_writes():
    table = README.partition("<!-- papers -->\n")[2].partition("<!-- /papers -->")[0].strip()
    assert table == tables.markdown_table(catalog.papers(), catalog.recorded(catalog.shipped_results())).strip()
