from everyformer import catalog

# slug, arXiv id, title, as published.
EXPECTED = [
    ("adaptformer", "2205.13535", "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition"),
    (
        "after_transformers",
        "2408.00386",
        "What comes after transformers? -- A selective survey connecting ideas in deep learning",
    ),
    (
        "bytetransformer",
        "2210.03052",
        "ByteTransformer: A High-Performance Transformer Boosted for Variable-Length Inputs",
    ),
    ("diffscaler", "2404.09976", "Diffscaler: Enhancing the Generative Prowess of Diffusion Transformers"),
    ("ditraj", "2509.21839", "DiTraj: training-free trajectory control for video diffusion transformer"),
    ("ebt", "2507.02092", "Energy-Based Transformers are Scalable Learners and Thinkers"),
    ("faster_lighter", "2103.14636", "A Practical Survey on Faster and Lighter Transformers"),
    ("favit", "2312.08614", "Factorization Vision Transformer: Modeling Long Range Dependency with Local Window Cost"),
    ("fcaformer", "2211.07198", "Fcaformer: Forward Cross Attention in Hybrid Vision Transformer"),
    ("feedforward_3d", "2507.08448", "Review of Feed-forward 3D Reconstruction: From DUSt3R to VGGT"),
    ("fmvit", "2311.05707", "FMViT: A multiple-frequency mixing Vision Transformer"),
    (
        "ftp",
        "2410.18160",
        "Future Token Prediction -- Causal Language Modelling with Per-Token Semantic State Vector for Multi-Token Prediction",
    ),
    (
        "halo",
        "2501.02625",
        "HALO: Hadamard-Assisted Lossless Optimization for Efficient Low-Precision LLM Training and Fine-Tuning",
    ),
    ("icl_gd", "2212.07677", "Transformers learn in-context by gradient descent"),
    (
        "ifactformer",
        "2412.18840",
        "Implicit factorized transformer approach to fast prediction of turbulent channel flows",
    ),
    ("inference_survey", "2307.07982", "A Survey of Techniques for Optimizing Transformer Inference"),
    ("itransformer", "2310.06625", "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting"),
    ("joint_sampling", "2509.22738", "Enabling Approximate Joint Sampling in Diffusion LMs"),
    ("maze_mlmu", "2412.05117", "Transformers Can Navigate Mazes With Multi-Step Prediction"),
    ("mesa", "2405.16845", "On Mesa-Optimization in Autoregressively Trained Transformers: Emergence and Capability"),
    ("mpnn_gt", "2301.11956", "On the Connection Between MPNN and Graph Transformer"),
    ("nvfp4", "2509.25149", "Pretraining Large Language Models with NVFP4"),
    ("pasta", "2307.10936", "PASTA: Pretrained Action-State Transformer Agents"),
    ("predformer", "2410.04733", "PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners"),
    (
        "qsched",
        "2509.01624",
        "Q-Sched: Pushing the Boundaries of Few-Step Diffusion Models with Quantization-Aware Scheduling",
    ),
    ("ras", "2502.10389", "Region-Adaptive Sampling for Diffusion Transformers"),
    ("sla", "2509.24006", "SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear Attention"),
    ("sret", "2111.05297", "Sliced Recursive Transformer"),
    ("tah", "2511.08577", "Think-at-Hard: Selective Latent Iterations to Improve Reasoning Language Models"),
    ("ts_survey", "2202.07125", "Transformers in Time Series: A Survey"),
    ("uat", "2507.10581", "Universal Approximation Theorem for a Single-Layer Transformer"),
    ("vdt", "2305.13311", "VDT: General-purpose Video Diffusion Transformers via Mask Modeling"),
    ("vit_resnas", "2109.00642", "Searching for Efficient Multi-Stage Vision Transformers"),
    ("wavemix", "2205.14375", "WaveMix: A Resource-efficient Neural Network for Image Analysis"),
]


def test_the_catalogue_holds_the_thirty_four_papers():
    assert len(EXPECTED) == 34
    found = {card.slug: (card.arxiv, card.title) for card in catalog.papers()}
    for slug, arxiv, title in EXPECTED:
        assert found[slug] == (arxiv, title)


def test_summaries_are_a_few_sentences():
    for card in catalog.papers():
        assert 80 <= len(card.summary) <= 600, card.slug
        assert card.summary.endswith("."), card.slug


def test_every_claim_says_which_setting_its_figures_belong_to():
    for card in catalog.papers():
        assert card.claims, card.slug
        for claim in card.claims:
            assert claim.statement.endswith("."), (card.slug, claim.name)
            assert len(claim.setting) > 10, (card.slug, claim.name)


def test_built_papers_declare_a_threshold_and_a_run_for_each_claim():
    for card in catalog.papers():
        for claim in card.claims:
            assert bool(claim.run) == bool(claim.threshold) == card.built, (card.slug, claim.name)
            if claim.run:
                assert callable(getattr(card.room("claim"), claim.run))
                assert callable(getattr(card.room("claim"), claim.plan))


def test_the_four_surveys_are_marked():
    surveys = {card.slug for card in catalog.papers() if "survey" in card.tags}
    assert {"faster_lighter", "inference_survey", "after_transformers", "ts_survey"} <= surveys


def test_every_room_that_is_built_is_complete():
    for card in catalog.papers():
        if card.built:
            for room in ("claim.py", "README.md", "bench.py"):
                assert (card.folder / room).is_file(), (card.slug, room)
