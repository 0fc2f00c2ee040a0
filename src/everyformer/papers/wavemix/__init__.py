"""WaveMix: A Resource-efficient Neural Network for Image Analysis (arXiv 2205.14375)."""

from everyformer.catalog import Claim, Paper

PAPER = Paper(
    slug="wavemix",
    title="WaveMix: A Resource-efficient Neural Network for Image Analysis",
    arxiv="2205.14375",
    published="2022-05-28",
    authors=4,
    organisation=None,
    summary=(
        "Mixes the positions of an image by a wavelet transform instead of attention: halve the resolution, mix "
        "channels, come back. Networks for classification, segmentation and super-resolution that fit on one modest GPU."
    ),
    code="https://github.com/pranavphoenix/WaveMix",
    licence="MIT (code)",
    tags=("vision",),
    claims=(
        Claim(
            name="memory",
            statement="Accuracy comes at far less GPU memory than with other token mixers.",
            metric="GPU memory",
            unit="GB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="Cityscapes, Places-365, EMNIST and iNAT-mini; figures not verified",
            method="WaveMix",
            baseline="other token mixers",
        ),
    ),
)
