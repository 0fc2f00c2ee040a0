"""WaveMix: A Resource-efficient Neural Network for Image Analysis (arXiv 2205.14375)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

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
    licence="MIT (code); weights published without a licence of their own",
    tags=("vision",),
    claims=(
        Claim(
            name="memory",
            statement=(
                "A training step takes less than half the memory of a vision transformer with as many parameters and "
                "a token for each 2 x 2 pixels."
            ),
            metric="peak memory of a training step",
            unit="MiB",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting=(
                "the paper speaks of GPU memory, and no figure of it was verified; here 23k parameters, 64 pictures of "
                "32 x 32, fused attention"
            ),
            method="WaveMix-16/4",
            baseline="ViT, patches of 2",
            threshold=Threshold("ratio", 2.0),
            run="memory",
            plan="plan_memory",
        ),
        Claim(
            name="cifar10",
            statement=(
                "With as many parameters, WaveMix is more accurate on CIFAR-10 than a vision transformer that trains "
                "as long."
            ),
            metric="test accuracy",
            unit="%",
            better="higher",
            paper_value=94.58,
            paper_baseline=None,
            setting=(
                "the published weights of WaveMix-144/7, 3.0M parameters, on all of CIFAR-10; here 23k parameters and "
                "two passes over 15,000 pictures, six for the transformer"
            ),
            method="WaveMix-16/4",
            baseline="ViT, patches of 4",
            threshold=Threshold("difference", 5.0),
            run="cifar10",
            plan="plan_cifar10",
        ),
        Claim(
            name="few_parameters",
            statement="3,566 parameters, upsampling by interpolation included, are enough for MNIST.",
            metric="test accuracy",
            unit="%",
            better="higher",
            paper_value=99.0,
            paper_baseline=None,
            setting="MNIST, 60,000 digits to train on; here 98% is asked for, after four passes over 8,000 digits",
            method="WaveMix-Lite-8/10, interpolation",
            baseline="the same with transposed convolutions, 13,886 parameters",
            threshold=Threshold("bound", 98.0),
            run="few_parameters",
            plan="plan_few_parameters",
        ),
    ),
)

MODELS = {"wavemix": "WaveMix", "wavemix_segmenter": "WaveMixSegmenter", "wavemix_upscaler": "WaveMixUpscaler"}

TIMM = True  # the model room registers them with timm

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "WaveMix": "model",
        "WaveMixBlock": "model",
        "WaveMixSegmenter": "model",
        "WaveMixUpscaler": "model",
        "focal_loss": "model",
    },
)
