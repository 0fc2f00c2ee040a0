import pytest
import torch
from torch import nn

from everyformer.papers.fmvit import FMViT, bench, to_onnx
from everyformer.papers.fmvit.claim import lived_in

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_the_file_gives_the_same_logits_for_any_batch(tmp_path):
    torch.manual_seed(0)
    settings = {"dims": (16, 64), "local": (1, 0), "mixed": (0, 1), "reductions": (4, 2)}
    model = lived_in(FMViT(num_classes=5, **settings), 48)
    path = to_onnx(model, tmp_path / "model.onnx", size=(48, 40))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 48, 40)
        found = torch.from_numpy(bench.onnx_runtime(path, x)())
        torch.testing.assert_close(found, model(x).detach(), atol=1e-5, rtol=1e-5)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert "BatchNormalization" not in operators
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()), "the model itself stays as it is"
