import dataclasses
import json
import subprocess
import sys

import pytest

import everyformer
from everyformer import catalog
from everyformer.catalog import Claim, Panel, Paper, Result, Spread, Threshold

CLAIM = Claim("speed", "It is faster.", "time", "s", "lower", 1.0, 2.0, "an A100")


def card(**changes):
    values = ("sla", "T", "2509.24006", None, None, None, "s", None, "none", ("attention",), (CLAIM,))
    return dataclasses.replace(Paper(*values), **changes)


def test_a_paper_without_a_model_is_not_built_and_one_with_is():
    assert card(slug="no_such_folder").built is False
    assert everyformer.paper("sla").built is True


def test_unknown_paper_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown paper 'itransfomer'; did you mean itransformer"):
        everyformer.paper("itransfomer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": ("nonsense",)}, "tags must be"),
        ({"tags": ()}, "tags must be"),
        ({"arxiv": "25.1"}, "arxiv must look like"),
        ({"claims": (CLAIM, CLAIM)}, "different names"),
    ],
)
def test_a_card_with_a_wrong_field_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        card(**changes)


def test_a_claim_cannot_run_without_a_declared_threshold():
    with pytest.raises(ValueError, match="threshold must be declared before"):
        Claim("speed", "s", "time", "s", "lower", None, None, "", run="speed")


def test_result_survives_json():
    spread = Spread(1.0, 0.5, 1.5, [0.9, 1.1])
    result = Result(
        "sla", "speed", "cpu", "time", "s", "lower", spread, spread, spread, Threshold("ratio", 2.0), "reproduced",
        None, None, [0, 1], "cpu", {"torch": "2"}, "abc", 1.0, 2.0, "2026-01-01", {"x": spread},
        [Panel("t", "x", "y", {"a": ([1.0], [2.0])})],
    )  # fmt: skip
    again = Result.from_json(json.loads(json.dumps(result.to_json())))
    assert again.to_json() == json.loads(json.dumps(result.to_json())) | {
        "series": [{**result.to_json()["series"][0], "lines": {"a": ([1.0], [2.0])}}]
    }


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match=r"broken\.json is not a result: result lacks the fields"):
        catalog.recorded(tmp_path)


def test_front_door_imports_no_heavy_library():
    code = (
        "import sys, everyformer; everyformer.papers(); everyformer.list_models();"
        "heavy = {'torch', 'lightning', 'matplotlib', 'transformers', 'pandas', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_create_model_by_name():
    assert "itransformer" in everyformer.list_models()
    model = everyformer.create_model("itransformer", lookback=12, horizon=4, dim=16, heads=2, layers=1, ff=16)
    assert type(model).__name__ == "ITransformer"
    with pytest.raises(ValueError, match="did you mean itransformer"):
        everyformer.create_model("itransformr")


def test_recorded_results_belong_to_claims_of_the_catalogue():
    for stem, result in catalog.recorded(catalog.shipped_results()).items():
        claim = everyformer.paper(result.paper).claim(result.claim)
        assert claim.threshold == result.threshold, f"{stem} was judged by another threshold than the card declares"
        assert (catalog.shipped_results() / f"{stem}.png").is_file()
