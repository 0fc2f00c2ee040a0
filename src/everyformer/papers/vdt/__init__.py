"""VDT: General-purpose Video Diffusion Transformers via Mask Modeling (arXiv 2305.13311)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here a small VDT on a digit that flies and bounces, 12 frames of 32 x 32 as latents of 4 x 8 x 8 (principal "
    "components in the place of a VAE), the latents themselves predicted in place of the noise, no learned variance and "
    "no averaged weights, two to three minutes of training on one core, one sample for each video in 10 DDIM steps"
)
_FEATURES = "; Fréchet distance in the features of a small video network trained here to follow the digit"

PAPER = Paper(
    slug="vdt",
    title="VDT: General-purpose Video Diffusion Transformers via Mask Modeling",
    arxiv="2305.13311",
    published="2023-05-22",
    authors=7,
    organisation=None,
    summary=(
        "A diffusion transformer for video whose one mask input covers generation, prediction, interpolation and "
        "completion. Attention alternates between time and space, and given frames are simply left without noise."
    ),
    code="https://github.com/RERV/VDT",
    licence="non-commercial (code and weights)",
    tags=(
        "diffusion",
        "video",
    ),
    claims=(
        Claim(
            name="interpolation",
            statement="The same weights fill in the frames between given ones better than a copy or a blend of them.",
            metric="mean squared error",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper shows pictures and no figure; three frames between given ones" + _HERE,
            method="VDT",
            baseline="the better of nearer frame and linear blend",
            threshold=Threshold("ratio", 1.2),
            run="interpolation",
            plan="plan",
        ),
        Claim(
            name="ucf101",
            statement=(
                "It generates convincing short videos; here of digits, beside the same network without attention over "
                "time."
            ),
            metric="Frechet video distance",
            unit="FVD",
            better="lower",
            paper_value=225.7,
            paper_baseline=None,
            setting="UCF101, unconditional" + _HERE + _FEATURES,
            method="VDT",
            baseline="without temporal attention",
            threshold=Threshold("ratio", 2.0),
            run="ucf101",
            plan="plan",
        ),
        Claim(
            name="cityscapes",
            statement=(
                "The same model predicts driving videos; here the second half of a video of digits, beside a SimVP "
                "trained as long."
            ),
            metric="Frechet video distance",
            unit="FVD",
            better="lower",
            paper_value=142.3,
            paper_baseline=None,
            setting="Cityscapes prediction" + _HERE + _FEATURES,
            method="VDT",
            baseline="SimVP",
            threshold=Threshold("ratio", 1.1),
            run="cityscapes",
            plan="plan",
        ),
        Claim(
            name="prediction",
            statement=(
                "One model trained on all masks predicts the frames that follow far better than the last one kept; a "
                "SimVP trained as long stands beside it."
            ),
            metric="mean squared error",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="the paper predicts Cityscapes (SSIM 0.880 in its table, which was not verified)" + _HERE,
            method="VDT",
            baseline="last given frame",
            threshold=Threshold("ratio", 1.5),
            run="prediction",
            plan="plan",
        ),
        Claim(
            name="temporal",
            statement="It is the attention over time that makes frames follow one another.",
            metric="mean squared error of the change from frame to frame",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper's ablation was verified; prediction" + _HERE,
            method="VDT",
            baseline="without temporal attention",
            threshold=Threshold("ratio", 2.0),
            run="temporal",
            plan="plan",
        ),
        Claim(
            name="unified",
            statement=(
                "Learning all tasks costs little: the model of all masks predicts nearly as well as one that was trained "
                "as long to predict only."
            ),
            metric="error in excess of the prediction-only model's",
            unit="%",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure of the paper was verified; mean squared error of predicted frames" + _HERE,
            method="all masks",
            baseline="prediction only",
            threshold=Threshold("bound", 10.0),
            run="unified",
            plan="plan",
        ),
    ),
)

MODELS = {"vdt": "VDT", "vdt_s_2": "vdt_s_2", "vdt_l_2": "vdt_l_2"}

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "VDT": "model",
        "vdt_s_2": "model",
        "vdt_l_2": "model",
        "masked_diffusion_loss": "diffusion",
        "random_masks": "masks",
        "task_mask": "masks",
        "VDTModel": "pipeline",
        "VDTPipeline": "pipeline",
    },
)
