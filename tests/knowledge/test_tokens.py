"""Knowledge token by token: oracles that loop over texts, and what is padding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import kdx
from kdx.batch import Batch
from kdx.capture import Captured, Taps
from kdx.errors import CaptureError
from kdx.knowledge import AttentionScores, Cosine, HiddenStates, MiniLM
from kdx.knowledge.attention_scores import scores_of
from kdx.knowledge.cosine import cosine
from kdx.knowledge.minilm import minilm
from kdx.knowledge.tokens import real_tokens
from kdx.layout import Layout

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
BATCH = Batch({"input_ids": torch.ones(3, 4, dtype=torch.int64), "attention_mask": MASK})
LENGTHS = (3, 4, 1)


def tokens(random, width, *, seed, names="a"):
    return {name: random(3, 4, width, seed=seed + number) for number, name in enumerate(names)}


def heads_of(x, heads):
    return np.split(np.asarray(x, np.float64), heads, axis=-1)


def softmax(rows):
    exponent = np.exp(rows - rows.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def relation(a, b):
    return softmax(a @ b.T / np.sqrt(a.shape[-1]))


def of_texts(loss):
    """Texts cut to their length, each with the paper's mean over its tokens, weighed by its number of tokens."""
    return sum(n * loss(row, slice(n)) for row, n in enumerate(LENGTHS)) / sum(LENGTHS)


def hidden_oracle(s, t, weight=None):
    s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
    s = s if weight is None else s @ np.asarray(weight.detach(), np.float64).T
    return of_texts(lambda row, real: ((s[row, real] - t[row, real]) ** 2).mean())


def cosine_oracle(s, t):
    s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)

    def of(row, real):
        pairs = zip(s[row, real], t[row, real], strict=True)
        return np.mean([1 - a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs])

    return of_texts(of)


def attention_oracle(s, t, heads):
    def of(row, real):
        total = 0.0
        for side_s, side_t in zip(scored(s, heads, row, real), scored(t, heads, row, real), strict=True):
            total += ((side_s - side_t) ** 2).mean() / heads
        return total

    return of_texts(of)


def scored(side, heads, row, real):
    for q, k in zip(heads_of(side["q"], heads), heads_of(side["k"], heads), strict=True):
        yield q[row, real] @ k[row, real].T / np.sqrt(q.shape[-1])


def minilm_oracle(s, t, heads, relations):
    def of(row, real):
        total = 0.0
        for a, b in relations:
            parts = [zip(heads_of(x[a], heads), heads_of(x[b], heads), strict=True) for x in (s, t)]
            for (s_a, s_b), (t_a, t_b) in zip(*parts, strict=True):
                q, p = relation(s_a[row, real], s_b[row, real]), relation(t_a[row, real], t_b[row, real])
                total += (p * np.log(p / q)).sum(-1).mean() / heads
        return total

    return of_texts(of)


def value(component, s, t, batch=BATCH):
    student, teacher = Captured(s), Captured(t)
    component.setup(student, teacher)
    return component.double()(student, teacher, batch)


def test_hidden_states_are_the_mean_over_the_tokens_of_the_texts(random):
    s, t = tokens(random, 5, seed=1), tokens(random, 5, seed=9)
    found = value(HiddenStates(student="a", teacher="a"), s, t)
    assert found.value.item() == pytest.approx(hidden_oracle(s["a"], t["a"]), rel=1e-10)
    assert found.count == sum(LENGTHS)
    everything = value(HiddenStates(student="a", teacher="a", mask="all"), s, t)
    assert everything.value.item() == pytest.approx(((s["a"] - t["a"]) ** 2).mean().item(), rel=1e-10)
    assert everything.count == 12


def test_a_wider_teacher_has_one_map_for_all_layers_or_one_for_each(random):
    s, t = tokens(random, 3, seed=1, names="ab"), tokens(random, 6, seed=9, names="ab")
    taps = {"student": ("a", "b"), "teacher": ("a", "b")}
    shared, own = HiddenStates(**taps), HiddenStates(**taps, shared=False)
    for component, number in ((shared, 1), (own, 2)):
        found = value(component, s, t)
        weights = [part.weight for part in component.adapters]
        assert [tuple(weight.shape) for weight in weights] == [(6, 3)] * number
        expected = sum(hidden_oracle(s[n], t[n], weights[i % number]) for i, n in enumerate("ab"))
        assert found.value.item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match=r"shared=True has one linear map for all layers, from 3 to 6 .* shared=False"):
        value(HiddenStates(**taps), s, t | {"b": random(3, 4, 7)})


def test_the_layer_map_of_tinybert(random):
    layers = {f"layer.{n}": random(3, 4, 5, seed=n) for n in range(9)}
    names = {"layer.*": tuple(layers)}
    two = Captured({f"layer.{n}": random(3, 4, 5, seed=20 + n) for n in range(3)}, {"layer.*": tuple(layers)[:3]})
    component = HiddenStates(student="layer.*", teacher="layer.*", pairing="relative")  # embeddings among them
    component.setup(two, Captured(layers, names))
    assert component.pairs == [(0, 0), (1, 4), (2, 8)]
    taps = {"student": "layer.*", "teacher": "layer.*", "packed": True, "heads": 1}
    attention = AttentionScores(**taps, pairing="uniform")
    attention.setup(two, Captured(layers, names))
    assert attention.pairs == [(0, 2), (1, 5), (2, 8)]


def test_cosine_is_the_mean_over_the_tokens_of_the_texts_and_knows_no_length(random):
    s, t = tokens(random, 5, seed=1), tokens(random, 5, seed=9)
    found = value(Cosine(student="a", teacher="a"), s, t)
    assert found.value.item() == pytest.approx(cosine_oracle(s["a"], t["a"]), rel=1e-10)
    longer = {"a": s["a"] * random(3, 4, 1, seed=3).abs()}
    torch.testing.assert_close(value(Cosine(student="a", teacher="a"), longer, t).value, found.value)


def test_cosine_of_extreme_vectors_is_finite_and_right():
    one = torch.tensor([[1e-30, 0.0], [1e30, 1e30], [0.0, 0.0]], requires_grad=True)
    other = torch.tensor([[1.0, 0.0], [1e30, 0.0], [1.0, 0.0]])
    found = cosine(one, other)
    torch.testing.assert_close(found, torch.tensor([0.0, 1 - 0.5**0.5, 1.0]))
    found.sum().backward()
    assert torch.isfinite(one.grad[1:]).all()
    assert one.grad[2].abs().max() == 0


@pytest.mark.parametrize("loss", [cosine, lambda s, t: minilm(s, t, heads=2)])
def test_gradients_are_right_in_float64(random, loss):
    s, t = random(2, 3, 4, seed=3).requires_grad_(), random(2, 3, 4, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))


QK = {"student": "q", "student_keys": "k", "teacher": "q", "teacher_keys": "k"}


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_scores_are_the_mean_over_the_pairs_of_tokens_of_the_texts(random, heads):
    s, t = tokens(random, 4, seed=1, names="qk"), tokens(random, 6, seed=9, names="qk")
    found = value(AttentionScores(**QK, heads=heads), s, t)
    assert found.value.item() == pytest.approx(attention_oracle(s, t, heads), rel=1e-10)
    assert found.count == sum(LENGTHS)


def test_the_code_of_tinybert_takes_padding_for_zero_and_into_the_mean(random):
    s, t = tokens(random, 4, seed=1, names="qk"), tokens(random, 6, seed=9, names="qk")
    masked = [scores_of(x["q"], x["k"], 2).masked_fill(MASK[:, None, None] == 0, 0.0) for x in (s, t)]
    found = value(AttentionScores(**QK, heads=2, variant="code"), s, t)
    assert found.value.item() == pytest.approx((masked[0] - masked[1]).square().mean().item(), rel=1e-10)
    assert found.count == 12


def test_attention_weights_are_compared_as_they_are_and_padded_keys_do_not_count(random):
    s, t = random(3, 2, 4, 4, seed=1), random(3, 2, 4, 4, seed=2)
    found = value(AttentionScores(student="w", teacher="w"), {"w": s}, {"w": t})
    expected = of_texts(lambda row, real: ((s - t)[row, :, real, real] ** 2).mean().item())
    assert found.value.item() == pytest.approx(expected, rel=1e-10)


RELATIONS = [("qq", "kk", "vv"), ("qk", "vv"), ("kk",)]
QKV = {**QK, "student_values": "v", "teacher_values": "v"}


@pytest.mark.parametrize("relations", RELATIONS)
def test_relations_are_the_mean_over_heads_and_tokens_whatever_the_widths(random, relations):
    s, t = tokens(random, 4, seed=1, names="qkv"), tokens(random, 8, seed=9, names="qkv")
    taps = {key: tap for key, tap in QKV.items() if any(tap in name for name in relations) or "_" not in key}
    found = value(MiniLM(**taps, heads=4, relations=relations), s, t)
    assert found.value.item() == pytest.approx(minilm_oracle(s, t, 4, relations), rel=1e-10)
    assert found.count == sum(LENGTHS)
    packed = [{"q": torch.cat([side[part] for part in "qkv"], 2)} for side in (s, t)]
    other = value(MiniLM(student="q", teacher="q", packed=True, heads=4, relations=relations), *packed)
    torch.testing.assert_close(other.value, found.value)


@pytest.mark.parametrize(
    "component",
    [
        HiddenStates(student="q", teacher="q"),
        Cosine(student="q", teacher="q"),
        AttentionScores(**QK, heads=2),
        MiniLM(**QKV, heads=2),
    ],
)
def test_padding_changes_nothing_and_gets_no_gradient(random, component):
    s, t = tokens(random, 4, seed=1, names="qkv"), tokens(random, 4, seed=9, names="qkv")
    found = value(component, s, t).value
    real = MASK.bool()[..., None]
    odd = [{name: x.masked_fill(~real, 1e4 * (n + 1)) for name, x in side.items()} for n, side in enumerate((s, t))]
    leaves = {name: x.clone().requires_grad_() for name, x in odd[0].items()}
    again = component(Captured(leaves), Captured(odd[1]), BATCH).value
    torch.testing.assert_close(again, found)
    gradients = torch.autograd.grad(again, list(leaves.values()), allow_unused=True, materialize_grads=True)
    for gradient in gradients:
        assert torch.isfinite(gradient).all()
        assert gradient.masked_select(~real).abs().max() == 0
    longer = Batch({"attention_mask": torch.nn.functional.pad(MASK, (0, 2))})
    padded = [{name: torch.nn.functional.pad(x, (0, 0, 0, 2)) for name, x in side.items()} for side in (s, t)]
    torch.testing.assert_close(component(*map(Captured, padded), longer).value, found)
    last = {name: x.transpose(0, 1) for name, x in s.items()}
    layouts = dict.fromkeys("qkv", Layout("lnc"))
    torch.testing.assert_close(component(Captured(last, layouts=layouts), Captured(t), BATCH).value, found)
    none = Batch({"attention_mask": torch.zeros_like(MASK)})
    empty = component(Captured(leaves), Captured(odd[1]), none)
    assert (empty.value.item(), float(empty.count)) == (0.0, 0.0)
    gradients = torch.autograd.grad(empty.value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    "component",
    [
        HiddenStates(student="q", teacher="q"),
        Cosine(student="q", teacher="q", padding=0),
        AttentionScores(student="q", teacher="q", packed=True, heads=2, mask="seen"),
        MiniLM(student="q", teacher="q", packed=True, heads=2),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated:DeprecationWarning")  # torch's own tracer
def test_batches_of_any_size_and_padding_compile_into_one_graph(random, component):
    component = copy.deepcopy(component)
    component.setup(Captured({"q": random(6, 4, 12)}), Captured({"q": random(6, 4, 24)}))

    def loss(s, t, ids):
        named = Batch({"input_ids": ids, "attention_mask": ids != 0, "seen": ids != 0})
        return component(
            Captured({"q": s}), Captured({"q": t}), named if component.padding is None else Batch(ids)
        ).value

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    component.double()
    for rows in (6, 3):
        s, t = random(rows, 4, 12, seed=1), random(rows, 4, 24, seed=2)
        ids = torch.arange(rows * 4).reshape(rows, 4) % 3
        torch.testing.assert_close(compiled(s, t, ids), loss(s, t, ids))


def test_what_is_padding_is_said_or_asked_for():
    ids = torch.tensor([[5, 7, 0], [1, 0, 0]])
    wanted = ids != 0
    size = (2, 3)
    for inputs, options in (
        (ids, {"padding": 0}),
        ({"input_ids": ids}, {"padding": 0}),
        ({"input_ids": ids, "attention_mask": wanted.long()}, {}),
        ({"input_ids": ids, "seen": wanted}, {"mask": "seen"}),
        ((ids, wanted), {"mask": "[1]"}),
    ):
        assert torch.equal(real_tokens(inputs, size, **options), wanted)
    images, mask = torch.zeros(2, 1, 4, 4), {"input_ids": ids, "attention_mask": wanted}
    for inputs, options in ((images, {}), ({"pixel_values": images}, {}), (ids, {"mask": "all"}), (None, {})):
        assert real_tokens(inputs, size, **options) is None
    assert real_tokens(mask, (2, 1)) is None  # a pooled vector
    asked = (
        r"layer: the inputs are token ids and nothing says which of its 3 tokens are padding.* padding=0 .* mask='all'"
    )
    for inputs in (ids, {"input_ids": ids}, (ids, ids)):
        with pytest.raises(ValueError, match=asked):
            real_tokens(inputs, size, who="layer")
    with pytest.raises(ValueError, match=r"mask='sen' names no item of the inputs: .*'input_ids'"):
        real_tokens({"input_ids": ids}, size, mask="sen")
    with pytest.raises(ValueError, match=r"mask='attention_mask' gives a mask of shape \[2, 3\] for \[2, 5\] rows"):
        real_tokens(mask, (2, 5))
    with pytest.raises(ValueError, match=r"padding=0 is an id among token ids.* the inputs are the items \['pixel"):
        real_tokens({"pixel_values": images}, size, padding=0)
    with pytest.raises(ValueError, match=r"mask and padding: expected one of the two"):
        Cosine(student="a", teacher="a", mask="all", padding=0)


def test_what_does_not_fit_is_refused_with_the_option_to_write(random):
    s, t = tokens(random, 4, seed=1, names="qkv"), tokens(random, 6, seed=9, names="qkv")
    for make, message in (
        (lambda: AttentionScores(**QK), r"heads: expected the number of attention heads of queries and keys, got None"),
        (lambda: AttentionScores(student="q", teacher="q", heads=2), r"name the keys, student_keys= and teacher_keys="),
        (lambda: AttentionScores(student="q", student_keys="k", teacher="q", heads=2), r"teacher_keys: the loss needs"),
        (lambda: MiniLM(**QK, heads=2), r"student_values: the loss needs the values of the student"),
        (lambda: MiniLM(**QK, heads=2, packed=True), r"student_keys: packed=True says"),
        (lambda: MiniLM(**QK, heads=2, relations=("qx",)), r"relations: expected some of qq, .* got \('qx',\)"),
        (
            lambda: value(AttentionScores(student="q", teacher="q"), s, t),
            r"expected attention weights \[N, heads, L, L\]",
        ),
        (
            lambda: value(MiniLM(**QKV, heads=4), s, t),
            r"the teacher's vectors have 6 channels, which 4 heads .* 1, 2, 3, 6",
        ),
        (lambda: value(MiniLM(student="q", teacher="q", heads=1, packed=True), s, t), r"has 4 channels, which are not"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    weights = {"w": random(3, 2, 4, 4)}, {"w": random(3, 3, 4, 4)}
    with pytest.raises(ValueError, match=r"compares head by head; give the student as many heads, or take 'minilm'"):
        value(AttentionScores(student="w", teacher="w"), *weights)


def bert(hidden, layers, heads, implementation="sdpa"):
    torch.manual_seed(hidden)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation=implementation,
    )
    return transformers.BertForSequenceClassification(config)


def texts():
    ids = torch.randint(1, 50, (3, 4), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids * MASK, "attention_mask": MASK}
    return Batch(inputs, torch.arange(3))


def taps_of_bert(layer="*"):
    module = f"bert.encoder.layer.{layer}.attention.self."
    names = {"keys": module + "key", "values": module + "value"}
    return dict.fromkeys(("student", "teacher"), module + "query") | {
        f"{side}_{part}": name for side in ("student", "teacher") for part, name in names.items()
    }


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_scores_of_bert_are_those_before_its_softmax_in_every_implementation(implementation):
    model, batch = bert(8, 2, 2, implementation).eval(), texts()
    module = "bert.encoder.layer.1.attention.self"
    captured = Taps(model, (f"{module}.query", f"{module}.key"))(batch.inputs)
    scores = scores_of(captured[f"{module}.query"], captured[f"{module}.key"], 2)
    eager = bert(8, 2, 2, "eager").eval()
    with torch.no_grad():
        weights = eager(**batch.inputs, output_attentions=True).attentions[1]
    hidden = scores.masked_fill(MASK[:, None, None] == 0, -torch.inf)
    torch.testing.assert_close(hidden.softmax(3), weights, rtol=1e-4, atol=1e-6)


def test_a_small_bert_learns_the_insides_of_a_larger_one():
    taps = taps_of_bert()
    values = {key: name for key, name in taps.items() if "values" in key}
    attention = AttentionScores(**{k: v for k, v in taps.items() if k not in values}, heads=2, pairing="uniform")
    layers = dict.fromkeys(("student", "teacher"), ("bert.embeddings", "bert.encoder.layer.*"))
    hidden = HiddenStates(**layers, pairing="relative")
    relations = MiniLM(**taps, heads=4, pairing="uniform")
    last = Cosine(student="bert.encoder.layer.1", teacher="bert.encoder.layer.3")
    knowledge = {"attention": attention, "hidden": hidden, "relations": relations, "cosine": last}
    student, teacher = bert(8, 2, 2), bert(12, 4, 2)
    scheme = kdx.Offline(student, teacher, knowledge=knowledge)
    batch = texts()
    run = kdx.fit(scheme, [batch], epochs=2, evaluate=[batch])
    assert run.step == 2
    assert hidden.pairs == [(0, 0), (1, 2), (2, 4)]
    losses = scheme.eval()(batch)
    assert {term: losses.counts[term].item() for term in knowledge} == dict.fromkeys(knowledge, sum(LENGTHS))
    seen = [Taps(model.eval(), list(taps.values()))(batch.inputs) for model in (student, teacher)]
    parts = dict(zip("qkv", (taps["student"], taps["student_keys"], taps["student_values"]), strict=True))
    sides = [{part: captured.select(tap) for part, tap in parts.items()} for captured in seen]
    pair = [
        [{part: each[n].detach() for part, each in side.items()} for n in ns]
        for side, ns in zip(sides, ((0, 1), (1, 3)), strict=True)
    ]
    expected = sum(minilm_oracle(s, t, 4, ("qq", "kk", "vv")) for s, t in zip(*pair, strict=True))
    assert losses.terms["relations"].item() == pytest.approx(expected, rel=1e-4)
    expected = sum(attention_oracle(s, t, 2) for s, t in zip(*pair, strict=True))
    assert losses.terms["attention"].item() == pytest.approx(expected, rel=1e-4)


def test_micro_batches_of_other_lengths_take_the_step_of_one_batch():
    batch = texts()
    scheme = kdx.Offline(
        bert(8, 2, 2),
        bert(8, 4, 2),
        task=None,
        knowledge={"c": Cosine(student="bert.encoder.layer.1", teacher="bert.encoder.layer.3")},
    )
    scheme.setup(batch)
    scheme.eval()
    whole = scheme(batch)
    parts = [scheme(batch.at(slice(0, 1))), scheme(batch.at(slice(1, 3)))]
    weighed = sum(part.counts["c"] * part.terms["c"] for part in parts) / sum(part.counts["c"] for part in parts)
    torch.testing.assert_close(weighed, whole.terms["c"])


def test_a_model_that_computes_no_attention_weights_is_refused_with_the_way_out():
    batch = texts()
    tap = "bert.encoder.layer.0.attention.self[1]"
    knowledge = {"attention": AttentionScores(student=tap, teacher=tap)}
    eager = kdx.Offline(bert(8, 1, 2, "eager"), bert(12, 1, 2, "eager"), knowledge=knowledge)
    assert eager(batch).terms["attention"] > 0
    with pytest.raises(CaptureError, match=r"self\[1\]' gave None.* built with attn_implementation=\"eager\""):
        kdx.Offline(bert(8, 1, 2), bert(12, 1, 2), knowledge=knowledge)(batch)
    vit = kdx.models.ViT(dim=8, depth=1, heads=2, input_shape=(1, 8, 8))
    with pytest.raises(CaptureError, match=r"'blocks.0.self_attn\[1\]'.* gave None.*blocks.0.self_attn:qkv"):
        Taps(vit, ("blocks.0.self_attn[1]",))(torch.zeros(1, 1, 8, 8))


def test_transformers_of_torch_give_queries_keys_and_values_side_by_side():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        attention.in_proj_bias.normal_()
    x = torch.randn(3, 4, 8)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=True, average_attn_weights=False)[1]

    captured = Taps(Own(), ("attention:qkv",))(x)
    q, k, _ = captured["attention:qkv"].chunk(3, 2)
    torch.testing.assert_close(scores_of(q, k, 2).softmax(3), captured.logits)
    with pytest.raises(CaptureError, match=r"'fc:qkv' asks for .*MultiheadAttention, and the module is Linear"):
        Taps(kdx.models.ViT(dim=8, depth=1, heads=2), ("fc:qkv",))


def test_the_tap_of_attention_is_copied_compiled_and_refuses_keys_of_another_sequence():
    class Net(nn.Module):
        def __init__(self, other=False, **options):
            super().__init__()
            self.attention, self.other = nn.MultiheadAttention(8, 2, batch_first=True, **options), other

        def forward(self, x):
            return self.attention(x, x.flip(1) if self.other else x, x)[0].mean(1)

    torch.manual_seed(0)
    x, targets = torch.randn(3, 4, 8), torch.arange(3)
    knowledge = {"r": MiniLM(student="attention:qkv", teacher="attention:qkv", packed=True, heads=2)}
    scheme = kdx.Offline(Net(), Net(), knowledge=knowledge)
    plain = scheme((x, targets)).terms["r"]
    torch.testing.assert_close(copy.deepcopy(scheme)((x, targets)).terms["r"], plain)
    torch.compiler.reset()
    compiled = torch.compile(scheme, backend="aot_eager")
    torch.testing.assert_close(compiled(Batch(x, targets)).terms["r"], plain)
    with pytest.raises(CaptureError, match="'attention:qkv' asks for queries, keys and values of one sequence"):
        Taps(Net(other=True), ("attention:qkv",))(x)
    with pytest.raises(CaptureError, match="has kdim=4 and vdim=8"):
        Taps(Net(kdim=4), ("attention:qkv",))


def test_the_models_of_kdx_learn_attention_too():
    def net(dim, depth):
        torch.manual_seed(dim)
        return kdx.models.TokenTransformer(dim, depth=depth, heads=2, vocabulary=9, num_classes=3, input_shape=(4,))

    ids = torch.randint(1, 9, (3, 4)) * MASK
    tap = "blocks.*.self_attn:qkv"
    taps = {"student": tap, "teacher": tap, "packed": True, "padding": 0, "pairing": "uniform"}
    scheme = kdx.Offline(
        net(8, 1),
        net(12, 2),
        knowledge={"relations": MiniLM(**taps, heads=4), "attention": AttentionScores(**taps, heads=2)},
    )
    run = kdx.fit(scheme, [Batch(ids, torch.arange(3))], epochs=2, evaluate=[Batch(ids, torch.arange(3))])
    assert run.step == 2
    with pytest.raises(
        ValueError, match=r"MiniLM: the student's feature at 'blocks.0.self_attn:qkv': the inputs are token"
    ):
        kdx.Offline(net(8, 1), net(12, 1), knowledge={"r": MiniLM(**taps | {"padding": None}, heads=4)})(
            (ids, torch.arange(3))
        )


def test_some_rows_of_a_batch_without_inputs_are_those_of_its_targets() -> None:
    few = Batch(None, torch.arange(4), torch.arange(4)).at(slice(1, 3))
    assert few.inputs is None
    assert few.targets.tolist() == few.index.tolist() == [1, 2]
