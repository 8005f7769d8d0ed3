"""kdx's own components, registered through the same hooks as those of a plugin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdx.hookspecs import hookimpl
from kdx.ops._declarations import OPS
from kdx.spec import Spec


@hookimpl
def kdx_knowledge() -> Iterable[Spec]:
    """Knowledge components of kdx."""
    return [
        Spec(
            "soft-targets",
            "kdx.knowledge.soft_targets:SoftTargets",
            "KL between temperature-softened class probabilities",
            "Hinton et al. 2015, arXiv:1503.02531",
        ),
        Spec(
            "logits",
            "kdx.knowledge.logits:Logits",
            "mean squared error between logits",
            "Ba, Caruana 2014, arXiv:1312.6184",
        ),
        Spec(
            "sigmoid-targets",
            "kdx.knowledge.sigmoid_targets:SigmoidTargets",
            "KL between the probabilities of each label (multi-label, yes or no)",
            "Yang et al. 2023, arXiv:2308.06453",
        ),
        Spec(
            "gaussian-kl",
            "kdx.knowledge.gaussian_kl:GaussianKL",
            "KL between the normal distributions that both predict (regression)",
            "Kendall, Gal 2017, arXiv:1703.04977",
        ),
        Spec(
            "margin-mse",
            "kdx.knowledge.margin_mse:MarginMSE",
            "squared error between margins of rankers' scores, positive over negatives",
            "Hofstätter et al. 2020, arXiv:2010.02666",
        ),
        Spec(
            "hard-targets",
            "kdx.knowledge.hard_targets:HardTargets",
            "cross-entropy with the class that the teacher predicts",
            "Touvron et al. 2021, arXiv:2012.12877",
        ),
        Spec(
            "dkd",
            "kdx.knowledge.dkd:DKD",
            "soft targets with the label's class and the other classes weighted apart",
            "Zhao et al. 2022, arXiv:2203.08679",
        ),
        Spec(
            "nkd",
            "kdx.knowledge.nkd:NKD",
            "cross-entropies of the label's class and of the others, renormalised",
            "Yang et al. 2023, arXiv:2303.13005",
        ),
        Spec(
            "ctkd",
            "kdx.knowledge.ctkd:CTKD",
            "soft targets at a temperature that is learned against the student",
            "Li et al. 2023, arXiv:2211.16231",
        ),
        Spec(
            "mlld",
            "kdx.knowledge.mlld:MLLD",
            "predictions at several temperatures, by sample, batch and class",
            "Jin et al. 2023, CVPR 2023",
        ),
        Spec(
            "logit-standardisation",
            "kdx.knowledge.logit_standardisation:LogitStandardisation",
            "soft targets (or another loss) of logits standardised per sample",
            "Sun et al. 2024, arXiv:2403.01427",
        ),
        Spec(
            "dist",
            "kdx.knowledge.dist:DIST",
            "Pearson correlation of predictions, per sample and per class",
            "Huang et al. 2022, arXiv:2205.10536",
        ),
        Spec(
            "reverse-kl",
            "kdx.knowledge.reverse_kl:ReverseKL",
            "KL from the student's softened probabilities to the teacher's",
            "Gu et al. 2024, arXiv:2306.08543",
        ),
        Spec(
            "jsd",
            "kdx.knowledge.jsd:JSD",
            "generalised Jensen-Shannon divergence between softened probabilities",
            "Agarwal et al. 2024, arXiv:2306.13649",
        ),
        Spec(
            "skew-kl",
            "kdx.knowledge.skew_kl:SkewKL",
            "KL to a mixture of both sides, forward or reverse, with a bounded gradient",
            "Ko et al. 2024, arXiv:2402.03898",
        ),
        Spec(
            "adaptive-kl",
            "kdx.knowledge.adaptive_kl:AdaptiveKL",
            "forward and reverse KL, weighted by whether head or tail of the teacher is off",
            "Wu et al. 2025, arXiv:2404.02657",
        ),
        Spec(
            "alpha-beta",
            "kdx.knowledge.alpha_beta:AlphaBeta",
            "alpha-beta divergence: how much large errors and confident classes weigh",
            "Wang et al. 2025, arXiv:2505.04560",
        ),
        Spec(
            "uld",
            "kdx.knowledge.uld:ULD",
            "sorted probabilities, of a teacher with another tokenizer",
            "Boizard et al. 2024, arXiv:2402.12030",
        ),
        Spec(
            "alm",
            "kdx.knowledge.alm:ALM",
            "likelihood of each chunk of text, of a teacher with another tokenizer",
            "Minixhofer et al. 2025, arXiv:2503.20083",
        ),
        Spec(
            "hint",
            "kdx.knowledge.hint:Hint",
            "regress teacher layers through learned adapters",
            "Romero et al. 2015, arXiv:1412.6550",
        ),
        Spec(
            "attention-transfer",
            "kdx.knowledge.attention_transfer:AttentionTransfer",
            "normalised spatial attention maps: look where the teacher looks",
            "Zagoruyko, Komodakis 2017, arXiv:1612.03928",
        ),
        Spec(
            "cwd",
            "kdx.knowledge.cwd:CWD",
            "where each channel responds: KL between softmaxes over the pixels",
            "Shu et al. 2021, arXiv:2011.13256",
        ),
        Spec(
            "nst",
            "kdx.knowledge.nst:NST",
            "match the distribution of the channels' responses (polynomial kernel MMD)",
            "Huang, Wang 2017, arXiv:1707.01219",
        ),
        Spec(
            "vid",
            "kdx.knowledge.vid:VID",
            "likelihood of teacher layers under a Gaussian predicted by the student",
            "Ahn et al. 2019, arXiv:1904.05835",
        ),
        Spec(
            "attention-scores",
            "kdx.knowledge.attention_scores:AttentionScores",
            "attention scores of a transformer's heads, as TinyBERT compares them",
            "Jiao et al. 2020, arXiv:1909.10351",
        ),
        Spec(
            "hidden-states",
            "kdx.knowledge.hidden_states:HiddenStates",
            "squared error between a transformer's hidden states, as in TinyBERT",
            "Jiao et al. 2020, arXiv:1909.10351",
        ),
        Spec(
            "cosine",
            "kdx.knowledge.cosine:Cosine",
            "cosine between a transformer's hidden states, as in DistilBERT",
            "Sanh et al. 2019, arXiv:1910.01108",
        ),
        Spec(
            "minilm",
            "kdx.knowledge.minilm:MiniLM",
            "relations of tokens by queries, keys and values, as in MiniLMv2",
            "Wang et al. 2021, arXiv:2012.15828",
        ),
        Spec(
            "rkd",
            "kdx.knowledge.rkd:RKD",
            "distances between pairs and angles between triples of samples",
            "Park et al. 2019, arXiv:1904.05068",
        ),
        Spec(
            "irg",
            "kdx.knowledge.irg:IRG",
            "graph of the samples: logits, distances, and both from layer to layer",
            "Liu et al. 2019, CVPR 2019",
        ),
        Spec(
            "sp",
            "kdx.knowledge.sp:SP",
            "similarities between the samples' activations of a layer",
            "Tung, Mori 2019, arXiv:1907.09682",
        ),
        Spec(
            "pkt",
            "kdx.knowledge.pkt:PKT",
            "KL between the samples' probabilities to be neighbours",
            "Passalis, Tefas 2018, arXiv:1803.10837",
        ),
        Spec(
            "cc",
            "kdx.knowledge.cc:CC",
            "a Gaussian kernel between samples, as a Taylor series",
            "Peng et al. 2019, arXiv:1904.01802",
        ),
        Spec(
            "fsp",
            "kdx.knowledge.fsp:FSP",
            "correlations between the channels of one layer and those of the next",
            "Yim et al. 2017, CVPR 2017",
        ),
        Spec(
            "ofd",
            "kdx.knowledge.ofd:OFD",
            "partial distance before the ReLU to a margin ReLU of the teacher",
            "Heo et al. 2019, arXiv:1904.01866",
        ),
        Spec(
            "ofa",
            "kdx.knowledge.ofa:OFA",
            "exits of the student's stages learn the teacher's logits, for unlike networks",
            "Hao et al. 2023, arXiv:2310.19444",
        ),
        Spec(
            "ab",
            "kdx.knowledge.ab:AB",
            "activation boundaries: be active where the teacher is, before the ReLU",
            "Heo et al. 2019, arXiv:1811.03233",
        ),
        Spec(
            "ft",
            "kdx.knowledge.ft:FT",
            "factor transfer: a translated layer against the teacher's paraphrased one",
            "Kim et al. 2018, arXiv:1802.04977",
        ),
        Spec(
            "review-kd",
            "kdx.knowledge.review_kd:ReviewKD",
            "fuse student layers from deep to shallow, compare on a pyramid",
            "Chen et al. 2021, arXiv:2104.09044",
        ),
        Spec(
            "crd",
            "kdx.knowledge.crd:CRD",
            "contrast student and teacher embeddings against memory banks",
            "Tian et al. 2020, arXiv:1910.10699",
        ),
        Spec(
            "semckd",
            "kdx.knowledge.semckd:SemCKD",
            "every layer pair, weighted by learned attention over teacher layers",
            "Chen et al. 2021, arXiv:2012.03236",
        ),
        Spec(
            "simkd",
            "kdx.knowledge.simkd:SimKD",
            "match the teacher's last feature, for its reused classifier",
            "Chen et al. 2022, arXiv:2203.14001",
        ),
    ]


@hookimpl
def kdx_schemes() -> Iterable[Spec]:
    """Schemes of kdx."""
    return [
        Spec("supervised", "kdx.schemes.supervised:Supervised", "labels alone: a teacher, or the control"),
        Spec(
            "offline",
            "kdx.schemes.offline:Offline",
            "a trained, frozen teacher teaches a student",
            "Hinton et al. 2015, arXiv:1503.02531",
        ),
        Spec(
            "on-policy",
            "kdx.schemes.on_policy:OnPolicy",
            "a language model's own writing is scored by its teacher, mixed with the data's (GKD)",
            "Agarwal et al. 2024, arXiv:2306.13649",
        ),
        Spec(
            "data-free",
            "kdx.schemes.data_free:DataFree",
            "a generator makes the images on which the teacher teaches; no real one is seen",
            "Micaelli, Storkey 2019, arXiv:1905.09768",
        ),
        Spec(
            "dense-guidance",
            "kdx.schemes.dense_guidance:DenseGuidance",
            "several frozen teachers, one left out at random each step",
            "Son et al. 2021, arXiv:2009.08825",
        ),
        Spec(
            "residual",
            "kdx.schemes.residual:Residual",
            "an assistant learns what a finished student misses; their outputs add up",
            "Gao et al. 2020, arXiv:2002.09168",
        ),
        Spec(
            "residual-features",
            "kdx.schemes.residual_features:ResidualFeatures",
            "a student mimics a teacher's map, an assistant learns what it misses; they add up",
            "Gao et al. 2020, arXiv:2002.09168",
        ),
        Spec(
            "hint-stage",
            "kdx.schemes.hint_stage:HintStage",
            "first stage of FitNets: train a student up to its guided layer",
            "Romero et al. 2015, arXiv:1412.6550",
        ),
        Spec(
            "paraphrase",
            "kdx.schemes.paraphrase:Paraphrase",
            "first stage of factor transfer: an autoencoder of a teacher's layer",
            "Kim et al. 2018, arXiv:1802.04977",
        ),
        Spec(
            "boundary-stage",
            "kdx.schemes.boundary_stage:BoundaryStage",
            "first stage of AB: initialise a student by the teacher's activation boundaries",
            "Heo et al. 2019, arXiv:1811.03233",
        ),
        Spec(
            "simkd",
            "kdx.schemes.simkd:SimKD",
            "the student gets the teacher's classifier and learns its input",
            "Chen et al. 2022, arXiv:2203.14001",
        ),
        Spec(
            "mutual",
            "kdx.schemes.mutual:Mutual",
            "peers teach each other, in one step or in turn",
            "Zhang et al. 2018, arXiv:1706.00384",
        ),
        Spec(
            "online",
            "kdx.schemes.online:Online",
            "a larger teacher and a student are trained together, one way",
            "Gou et al. 2021, arXiv:2006.05525, section 3.2",
        ),
        Spec(
            "one",
            "kdx.schemes.one:ONE",
            "the gated ensemble of a network's branches teaches each of them",
            "Lan et al. 2018, arXiv:1806.04606",
        ),
        Spec(
            "kdcl",
            "kdx.schemes.kdcl:KDCL",
            "peers that see different views learn from their ensemble",
            "Guo et al. 2020, CVPR",
        ),
        Spec(
            "multi-teacher",
            "kdx.schemes.multi_teacher:MultiTeacher",
            "several trained teachers, with different knowledge from each",
            "You et al. 2017, doi:10.1145/3097983.3098135",
        ),
        Spec(
            "byot",
            "kdx.schemes.byot:BYOT",
            "self: the deepest stage teaches branches on the shallower ones",
            "Zhang et al. 2019, arXiv:1905.08094",
        ),
        Spec(
            "sad",
            "kdx.schemes.sad:SAD",
            "self: each stage mimics the attention map of the next deeper one",
            "Hou et al. 2019, arXiv:1908.00821",
        ),
        Spec(
            "ps-kd",
            "kdx.schemes.ps_kd:PSKD",
            "self: each sample's prediction of the last epoch softens its target",
            "Kim et al. 2021, arXiv:2006.12000",
        ),
        Spec(
            "tf-kd",
            "kdx.schemes.tf_kd:TfKD",
            "self: a virtual teacher, made of the label, regularises the student",
            "Yuan et al. 2020, arXiv:1909.11723",
        ),
        Spec(
            "cs-kd",
            "kdx.schemes.cs_kd:CSKD",
            "self: another sample of the class teaches a sample's prediction",
            "Yun et al. 2020, arXiv:2003.13964",
        ),
        Spec(
            "snapshot-distillation",
            "kdx.schemes.snapshot_distillation:SnapshotDistillation",
            "self: the student at the end of a learning-rate cycle teaches the next",
            "Yang et al. 2019, arXiv:1812.00123",
        ),
        Spec(
            "ema-teacher",
            "kdx.schemes.ema_teacher:EmaTeacher",
            "self: a moving average of the student teaches it (mean teacher)",
            "Tarvainen, Valpola 2017, arXiv:1703.01780",
        ),
    ]


@hookimpl
def kdx_assistants() -> Iterable[Spec]:
    """Teacher assistants of kdx."""
    return [
        Spec(
            "takd",
            "kdx.assistants.chain:TAKD",
            "a chain of assistants, each taught by the next larger one",
            "Mirzadeh et al. 2020, arXiv:1902.03393",
        ),
        Spec(
            "dgkd",
            "kdx.assistants.chain:DGKD",
            "a chain in which all larger models teach, one dropped a step",
            "Son et al. 2021, arXiv:2009.08825",
        ),
        Spec(
            "residual",
            "kdx.assistants.residual:ResidualKD",
            "a smaller student and an assistant that learns what it misses, within the student's cost",
            "Gao et al. 2020, arXiv:2002.09168",
        ),
        Spec(
            "hint-then-distil",
            "kdx.assistants.hint_then_distil:HintThenDistil",
            "FitNets: train up to a guided layer, then distil from there",
            "Romero et al. 2015, arXiv:1412.6550",
        ),
        Spec(
            "factor-transfer",
            "kdx.assistants.factor_transfer:FactorTransfer",
            "a paraphraser of a teacher's layer is trained first, then the student on its factors",
            "Kim et al. 2018, arXiv:1802.04977",
        ),
        Spec(
            "boundaries-then-distil",
            "kdx.assistants.boundaries_then_distil:BoundariesThenDistil",
            "AB: initialise by activation boundaries, then distil from there",
            "Heo et al. 2019, arXiv:1811.03233",
        ),
        Spec(
            "born-again",
            "kdx.assistants.born_again:BornAgain",
            "self: generations of one model, each taught by the one before",
            "Furlanello et al. 2018, arXiv:1805.04770",
        ),
    ]


@hookimpl
def kdx_models() -> Iterable[Spec]:
    """Models of kdx, for small images, series and token ids."""
    he, howard, dosovitskiy = (
        "He et al. 2016, arXiv:1512.03385",
        "Howard et al. 2017, arXiv:1704.04861",
        "Dosovitskiy et al. 2021, arXiv:2010.11929",
    )
    return [
        Spec("convnet", "kdx.models.cnn:ConvNet", "plain CNN of stages; taps stage1.., avgpool, fc"),
        Spec("convnet-1d", "kdx.models.conv1d:ConvNet1d", "plain CNN over time; taps stage1.., avgpool, fc"),
        Spec("derived", "kdx.students.derived:derived", "a student derived from its teacher: kdx student make"),
        Spec("depthwise-net", "kdx.models.depthwise:DepthwiseNet", "depth-wise separable CNN", howard),
        Spec("embedding-bag", "kdx.models.bag:EmbeddingBag", "mean of token vectors and a perceptron, very small"),
        Spec("feature-sum", "kdx.models.feature_sum:FeatureSum", "a student and an assistant, their maps added up"),
        Spec("mlp", "kdx.models.mlp:MLP", "multi-layer perceptron on flattened inputs"),
        Spec(
            "paraphrased",
            "kdx.teachers.paraphrased:Paraphrased",
            "a teacher with the paraphraser of one of its layers",
            "Kim et al. 2018, arXiv:1802.04977",
        ),
        Spec(
            "residual-sum", "kdx.models.residual_sum:ResidualSum", "a student and an assistant, their outputs added up"
        ),
        Spec("resnet", "kdx.models.resnet:ResNet", "residual CNN of CIFAR style, depth 8, 20, 32, ...", he),
        Spec("token-conv", "kdx.models.token_conv:TokenConv", "convolutions over token ids, for rows or every token"),
        Spec(
            "token-decoder",
            "kdx.models.token_decoder:TokenDecoder",
            "small causal language model on token ids; taps blocks.*, reduce, fc",
            "Vaswani et al. 2017, arXiv:1706.03762",
        ),
        Spec(
            "token-transformer",
            "kdx.models.token_transformer:TokenTransformer",
            "transformer encoder on token ids, for rows or every token",
            "Vaswani et al. 2017, arXiv:1706.03762",
        ),
        Spec(
            "unet",
            "kdx.models.unet:UNet",
            "encoder and decoder for the class of every pixel",
            "Ronneberger et al. 2015, arXiv:1505.04597",
        ),
        Spec("vit", "kdx.models.vit:ViT", "transformer encoder on image patches", dosovitskiy),
    ]


@hookimpl
def kdx_recipes() -> Iterable[Path]:
    """The recipes of kdx, which need no plugin."""
    return sorted((Path(__file__).parent / "recipes").glob("*.yaml"))


@hookimpl
def kdx_datasets() -> Iterable[Spec]:
    """Data sets: files of one's own, and those of kdx, of which none needs a download."""
    return [
        Spec(
            "composed-scenes",
            "kdx.datasets.scenes:ComposedScenes",
            "2,000 + 500 scenes composed of embedded Fashion-MNIST images, with the class of every pixel",
        ),
        Spec("csv", "kdx.datasets.csv_table:CsvTable", "rows of a CSV file, to predict one of its columns"),
        Spec("digits", "kdx.datasets.digits:Digits", "1,797 handwritten digits of 8x8, from scikit-learn"),
        Spec(
            "electrocardiogram",
            "kdx.datasets.electrocardiogram:Electrocardiogram",
            "windows of five minutes of an electrocardiogram (embedded), to forecast what follows",
            "Moody, Mark 2001, doi:10.13026/C2F305",
        ),
        Spec(
            "fashion-mnist",
            "kdx.datasets.fashion:FashionMnist",
            "5,000 + 2,000 images of clothing (embedded), or all 70,000 from a folder",
            "Xiao et al. 2017, arXiv:1708.07747",
        ),
        Spec("image-folder", "kdx.datasets.image_folder:ImageFolder", "images in folders named for their classes"),
        Spec("npz", "kdx.datasets.npz:NpzArrays", "arrays of inputs and targets in .npz files"),
        Spec(
            "word-stress",
            "kdx.datasets.stress:WordStress",
            "20,000 words as phones (embedded), with the stress of every vowel",
            "CMU Pronouncing Dictionary",
        ),
        Spec(
            "wordnet-nouns",
            "kdx.datasets.wordnet:WordNetNouns",
            "11,124 + 3,076 glosses of nouns in 25 classes (embedded)",
            "Miller 1995, doi:10.1145/219717.219748",
        ),
        Spec(
            "wordnet-words",
            "kdx.datasets.wordnet:WordNetWords",
            "7,500 words with the classes of all their senses (embedded): multi-label",
            "Miller 1995, doi:10.1145/219717.219748",
        ),
    ]


@hookimpl
def kdx_tasks() -> Iterable[Spec]:
    """Tasks of kdx."""
    return [
        Spec("binary", "kdx.tasks.binary:Binary", "yes or no from one logit, judged by accuracy"),
        Spec(
            "causal-lm",
            "kdx.tasks.causal_lm:CausalLM",
            "the next token of a sequence: cross-entropy over the labelled, shifted tokens, by which it is judged",
        ),
        Spec(
            "classification",
            "kdx.tasks.classification:Classification",
            "one class a sample: cross-entropy, judged by accuracy",
        ),
        Spec(
            "embedding",
            "kdx.tasks.embedding:Embedding",
            "triplet loss on an embedding, judged by Recall@1",
            "Schroff et al. 2015, arXiv:1503.03832",
        ),
        Spec("heads", "kdx.tasks.heads:Heads", "several outputs of one model, each with a task and a weight"),
        Spec(
            "multi-label",
            "kdx.tasks.multi_label:MultiLabel",
            "several labels, each there or not: binary cross-entropy, judged by mean average precision",
        ),
        Spec(
            "regression",
            "kdx.tasks.regression:Regression",
            "one or several quantities: squared, absolute or Huber error or Gaussian likelihood, judged by RMSE",
            "gaussian: Nix and Weigend 1994, doi:10.1109/ICNN.1994.374138",
        ),
        Spec(
            "segmentation",
            "kdx.tasks.segmentation:Segmentation",
            "one class a pixel: cross-entropy, judged by mean IoU",
        ),
        Spec(
            "token-classification",
            "kdx.tasks.token_classification:TokenClassification",
            "one class a token: cross-entropy, judged by accuracy per token",
        ),
    ]


@hookimpl
def kdx_students() -> Iterable[Spec]:
    """Ways of deriving a student of kdx."""
    return [
        Spec(
            "depth",
            "kdx.students.depth:ByDepth",
            "fewer layers: blocks that keep the shape are left out",
            "Sanh et al. 2019, arXiv:1910.01108",
        ),
        Spec(
            "depthwise",
            "kdx.students.depthwise:ByDepthwise",
            "depth-wise separable convolutions in place of convolutions",
            "Howard et al. 2017, arXiv:1704.04861",
        ),
        Spec(
            "low-rank",
            "kdx.students.low_rank:ByLowRank",
            "two thin layers in place of one, by singular values",
            "Denton et al. 2014, arXiv:1404.0736",
        ),
        Spec(
            "width",
            "kdx.students.width:ByWidth",
            "fewer channels in every layer, those with the largest filters",
            "Li et al. 2017, arXiv:1608.08710",
        ),
    ]


@hookimpl
def kdx_ops() -> Iterable[Spec]:
    """Fused losses of kdx, as ``kdx/ops/_declarations.py`` declares them."""
    return [Spec(op.name, op.target, op.summary, op.paper) for op in OPS.values()]
