"""timm knows the backbones after ``import everyformer``, whichever is imported first, and nothing is imported early."""

import subprocess
import sys

import pytest


def said(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout.strip()


LIST = "from everyformer import catalog; names = timm.list_models(module='model'); print(*names)"


@pytest.mark.parametrize("first", ["import everyformer; import timm", "import timm; import everyformer"])
def test_whichever_comes_first(first):
    from everyformer import catalog

    papers = [paper.slug for paper in catalog.papers() if getattr(paper_module(paper.slug), "TIMM", False)]
    names = said(f"{first}; {LIST}").split()
    for slug in papers:
        assert any(name.startswith(slug) for name in names), (slug, names)


def paper_module(slug):
    import importlib

    return importlib.import_module(f"everyformer.papers.{slug}")


def test_nothing_heavy_is_imported_early():
    assert said("import everyformer, sys; print('torch' in sys.modules, 'timm' in sys.modules)") == "False False"


@pytest.mark.parametrize("name", ["favit_b0", "fcaformer_l1", "fmvit_t", "sret_t", "vit_res_tiny", "wavemix_lite_8_5"])
def test_timms_folding_for_deployment_keeps_the_output(name):
    import timm
    import torch
    from timm.utils import reparameterize_model

    model = timm.create_model(name, num_classes=5).eval()
    folded = reparameterize_model(model)
    with torch.inference_mode():
        x = torch.randn(1, *model.pretrained_cfg["input_size"])
        torch.testing.assert_close(folded(x), model(x), atol=1e-4, rtol=1e-4)
