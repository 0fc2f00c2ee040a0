"""PASTA: Pretrained Action-State Transformer Agents (arXiv 2307.10936)."""

from everyformer.catalog import Claim, Paper, Threshold, lazy

_HERE = (
    "; here Gymnasium's HalfCheetah-v5 in episodes of 300 steps, trajectories of PPO policies at four stages of a short "
    "training, a model of two layers of width 64 on windows of four steps with 256 bins (mu-law of 10 over ten "
    "deviations, in place of 100 over 256), trained for 2,000 steps of 16 windows"
)
_RETURN = "; returns are 0 for random actions and 1 for the five best episodes, which are what is cloned"

PAPER = Paper(
    slug="pasta",
    title="PASTA: Pretrained Action-State Transformer Agents",
    arxiv="2307.10936",
    published="2023-07-20",
    authors=5,
    organisation=None,
    summary=(
        "Pretrains one small transformer on trajectories of several robots by treating every number of state and action "
        "as a token. The model then helps with imitation, failing sensors and changed dynamics after light tuning."
    ),
    code=None,
    licence="authors' repository not available",
    tags=(
        "control",
        "spacetime",
    ),
    claims=(
        Claim(
            name="tokens",
            statement="Tokens for single components serve downstream tasks better than tokens for whole states.",
            metric="normalised return",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="Brax Ant, HalfCheetah, Hopper and Walker2d; figures not verified" + _HERE + "; policies cloned on "
            "frozen features, the mean of next-token and masked training on either side" + _RETURN,
            method="component tokens",
            baseline="one token per state or action",
            threshold=Threshold("difference", 0.05),
            run="tokens",
            plan="plan",
        ),
        Claim(
            name="sensors",
            statement="A model of component tokens tells what a lost sensor would show, without further training.",
            metric="squared error of a lost sensor in its variance",
            unit="",
            better="lower",
            paper_value=None,
            paper_baseline=None,
            setting="no figure was verified" + _HERE + "; the newest value of a sensor that is seen at no step of the "
            "window, the mean over sensors, in episodes held back; a model of whole states gets the sensor's mean",
            method="C-BERT",
            baseline="masked model of whole states, the better of two ways to ask it",
            threshold=Threshold("ratio", 1.25),
            run="sensors",
            plan="plan",
        ),
        Claim(
            name="failure",
            statement="Policies on component tokens keep more of their return when a sensor fails.",
            metric="normalised return without a sensor",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure was verified" + _HERE + "; each of the sensors is lost in turn, in training and in the "
            "test" + _RETURN,
            method="C-BERT, told which sensor is lost",
            baseline="masked model of whole states, with the sensor's mean",
            threshold=Threshold("difference", 0.05),
            run="failure",
            plan="plan",
        ),
        Claim(
            name="peft",
            statement="Fewer than 10,000 tuned parameters give nearly the return of tuning all of the model.",
            metric="share of full fine-tuning's return",
            unit="%",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="fewer than 10,000 trained parameters in the abstract; no return was verified"
            + _HERE
            + "; IA3 and a "
            "head, whose parameters are not counted, tuned for 1,000 steps" + _RETURN,
            method="IA3",
            baseline="full fine-tuning",
            threshold=Threshold("bound", 90.0),
            run="peft",
            plan="plan",
        ),
        Claim(
            name="domains",
            statement="One model of several robots serves a task on one of them better than a model of that robot alone.",
            metric="normalised return",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure was verified; the paper's models of several robots also see more data"
            + _HERE
            + "; with "
            "Hopper-v5 and Swimmer-v5, at equal updates and samples in all; policies cloned on frozen features"
            + _RETURN,
            method="three robots",
            baseline="one robot",
            threshold=Threshold("difference", 0.02),
            run="domains",
            plan="plan",
        ),
        Claim(
            name="dynamics",
            statement="Policies on component tokens keep more of their return when gravity changes.",
            metric="normalised return in other gravities",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure was verified"
            + _HERE
            + "; gravity 0.5, 0.8, 1.2 and 1.5 times its own in the test only"
            + _RETURN,
            method="C-BERT",
            baseline="masked model of whole states",
            threshold=Threshold("difference", 0.05),
            run="dynamics",
            plan="plan",
        ),
        Claim(
            name="offline",
            statement="Offline learning is better on the pretrained features than on raw observations.",
            metric="normalised return",
            unit="",
            better="higher",
            paper_value=None,
            paper_baseline=None,
            setting="no figure was verified"
            + _HERE
            + "; TD3 with a cloning loss (the paper has TD3) on the trajectories "
            "of all policies" + _RETURN,
            method="C-BERT's features",
            baseline="raw observation",
            threshold=Threshold("difference", 0.05),
            run="offline",
            plan="plan",
        ),
    ),
)

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ComponentTokenizer": "tokenizer",
        **dict.fromkeys(("Pasta", "SIZES", "Size"), "model"),
        **dict.fromkeys(("OBJECTIVES", "WindowSampler", "Windows", "pretrain", "pretraining_loss"), "objectives"),
        **dict.fromkeys(("Features", "Policy", "TD3BC", "adapted"), "downstream"),
        "Actor": "acting",
        "PastaFeaturesExtractor": "extractor",
    },
)
