"""The adviser's page: a form without JavaScript, the table and the plot."""

import html
import re

import pytest

from everyformer import mixers
from everyformer.lab import mixer_table
from everyformer.lab.mixer_table import Accuracy, Speed, Table


def table(**changed):
    speed = [
        Speed(name, causal, n, seconds * n**growth, 3 * seconds * n**growth, 1e-4 if causal else None, 1e3 * n, 3e3 * n)
        for name, seconds, growth in (("full", 1e-8, 2), ("linear", 5e-6, 1))
        for n in (256, 1024, 4096)
        for causal in (False, True)
    ]
    right = [Accuracy(name, "recall", 64, share, 10.0, 1.0, 100) for name, share in (("full", 100.0), ("linear", 55.0))]
    facts = {
        "device": "CPU <of the tests>", "kind": "cpu", "dim": 128, "heads": 4, "scale": "cpu", "versions": {},
        "commit": "", "created": "", "speed": speed, "accuracy": right,
    }  # fmt: skip
    return Table(**{**facts, **changed})


@pytest.fixture
def measured(site_page, monkeypatch):
    monkeypatch.setattr(
        mixer_table, "load", lambda: [table(scale="smoke"), table(), table(device="a GPU", kind="cuda")]
    )
    return site_page.client


def test_the_form_is_answered_with_a_table_in_order(measured):
    answer = measured.get("/advise", params={"tokens": "4096", "latency": "50ms", "causal": "yes"})
    assert answer.status_code == 200
    rows = re.findall(r"<tr>.*?</tr>", answer.text.partition("<tbody>")[2], re.S)
    assert len(rows) == len(mixers.cards())
    assert (
        "<code>linear</code>" in rows[0] and "20.5 ms" in rows[0] and "4.1 MB" in rows[0] and "<td>yes</td>" in rows[0]
    )
    full = next(row for row in rows if "<code>full</code>" in row)
    assert "168 ms" in full and "too slow" in full
    said = html.unescape(answer.text)
    assert "First choice: linear, time" in said
    assert 'from everyformer import mixers; mixer = mixers.create("linear", dim=128, heads=4, causal=True)' in said
    assert "Predictions miss measured times by" in said
    assert "everyformer advise --tokens 4096 --latency 50ms --causal --device cpu --dim 128 --heads 4" in said
    assert "CPU <of" not in answer.text and "CPU &lt;of the tests&gt;" in answer.text


def test_the_form_keeps_what_was_asked(measured):
    asked = {"tokens": "999", "memory": "4GB", "latency": "2s", "step": "training", "by": "latency", "machine": "1"}
    text = measured.get("/advise", params={**asked, "causal": "yes"}).text
    for value in ("999", "4GB", "2s"):
        assert f'value="{value}"' in text
    for value in ("training", "latency", "1"):
        assert f'value="{value}" selected' in text
    assert 'value="yes" checked' in text
    assert "training, on a GPU" in text


def test_every_field_has_a_label_and_the_plot_a_description(measured):
    text = measured.get("/advise").text
    form = text[text.index('<form action="/advise"') : text.index("</form>", text.index('<form action="/advise"'))]
    fields = set(re.findall(r'<(?:input|select)[^>]* id="(\w+)"', form))
    assert fields == set(re.findall(r'<label for="(\w+)"', form))
    assert fields == {"tokens", "memory", "latency", "step", "by", "machine"}
    assert re.search(r'<img class="plot"[^>]* alt="Accuracy over time of a forward step at 8,192 tokens\. [^"]+"', text)
    assert '<a href="/advise">' in measured.get("/runs").text


def test_the_plot_is_a_picture_of_its_own(measured):
    address = html.unescape(re.search(r'src="(/advise\.svg[^"]*)"', measured.get("/advise").text)[1])
    answer = measured.get(address)
    assert answer.headers["content-type"] == "image/svg+xml" and "<svg" in answer.text
    assert "style-src 'unsafe-inline'" in answer.headers["content-security-policy"]
    assert measured.get("/advise.svg?tokens=none").status_code == 404


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", "many", "tokens must be a whole number"),
        ("tokens", "0", "tokens must be 1 to"),
        ("tokens", "²", "tokens must be a whole number"),
        ("memory", "4", "memory must be a number above 0 with its unit"),
        ("latency", "fast", "latency must be a number above 0 with its unit"),
        ("step", "backward", "step must be one of"),
        ("by", "price", "order must be one of"),
        ("machine", "7", "machine must be below 2"),
        ("step", "token", "step token needs causal"),
    ],
)
def test_what_cannot_be_read_is_said(measured, field, value, message):
    answer = measured.get("/advise", params={field: value})
    assert answer.status_code == 422 and 'role="alert"' in answer.text and message in html.unescape(answer.text)
    assert "<tbody>" not in answer.text


def test_where_nothing_was_measured_the_command_is_named(site_page, monkeypatch):
    monkeypatch.setattr(mixer_table, "load", lambda: [])
    answer = site_page.client.get("/advise")
    assert answer.status_code == 200 and "everyformer bench mixers" in answer.text


def test_a_file_that_is_no_table_is_said_without_its_place(site_page, monkeypatch, tmp_path):
    (tmp_path / "mixers.json").write_text("{}")
    monkeypatch.setattr(mixer_table, "own_file", lambda: tmp_path / "mixers.json")
    answer = site_page.client.get("/advise")
    assert answer.status_code == 200 and "What was measured here cannot be read" in answer.text
    assert 'role="alert"' in answer.text and str(tmp_path) not in answer.text
    assert site_page.client.get("/advise.svg").status_code == 404
