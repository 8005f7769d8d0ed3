"""Students with fewer channels: which are kept, what is copied, what goes together."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import kdx
from kdx.capture import call
from kdx.errors import StudentError
from kdx.students import derive
from kdx.students.groups import groups_of
from kdx.students.selection import kept_places, uniformly
from kdx.students.tracing import trace_channels
from kdx.students.width import _norms
from tests.students import nets

GREY = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
CNNS = {
    "convnet": lambda: (kdx.make("model", "convnet", width=6, stages=3, grid=2), GREY),
    "convnet without norm": lambda: (kdx.make("model", "convnet", width=6, norm=False), GREY),
    "resnet with zero-padded shortcuts": lambda: (kdx.make("model", "resnet", depth=14), GREY),
    "depthwise-net": lambda: (kdx.make("model", "depthwise-net", width=8), GREY),
    "mlp": lambda: (kdx.make("model", "mlp", hidden=(24, 16)), GREY),
    "torchvision-like resnet": lambda: (nets.ResNet(), nets.IMAGES),
    "resnext": lambda: (nets.ResNet(groups=2), nets.IMAGES),
    "vgg": lambda: (nets.VGG(), nets.IMAGES),
    "densenet": lambda: (nets.DenseNet(), nets.IMAGES),
    "mobilenet": lambda: (nets.MobileNet(), nets.IMAGES),
}


@pytest.mark.parametrize("name", CNNS)
def test_a_narrow_cnn_is_its_teacher_with_the_other_channels_silenced(name):
    teacher, images = CNNS[name]()
    nets.settled(teacher, images)
    student = derive(teacher, images, how="width", params="40%").model
    # silence what is dropped where it is made: filters, biases, scales and shifts; readers then read zeros
    trace = trace_channels(teacher, images)
    groups = groups_of(trace)
    ratio = derive(teacher, images, how="width", params="40%").edit.ratio
    kept, _ = kept_places(trace, uniformly(trace, groups, _norms(trace, groups, "l1"), ratio))
    silenced = copy.deepcopy(teacher)
    weights = dict(silenced.named_parameters())
    for key, indices in kept.items():
        if 0 in indices and key in weights:
            dropped = torch.ones(len(weights[key]), dtype=torch.bool)
            dropped[torch.as_tensor(indices[0])] = False
            weights[key].data[dropped] = 0
    with torch.no_grad():
        assert (silenced(images) - teacher(images)).abs().max() > 1e-3
        torch.testing.assert_close(student.eval()(images), silenced(images), rtol=1e-4, atol=1e-5)
    student.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_channels_with_the_largest_filters_are_kept_and_copied():
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3))
    with torch.no_grad():
        for channel, size in enumerate((1.0, 4.0, 2.0, 3.0)):
            teacher[0].weight[channel] = size * torch.randn(1, 3, 3).sign()
    images = torch.randn(2, 1, 4, 4)
    nets.settled(teacher, images)
    derived = derive(teacher, images, how="width", params=0.6)
    student, chosen = derived.model, [1, 3]
    assert torch.equal(student[0].weight, teacher[0].weight[chosen])
    assert torch.equal(student[0].bias, teacher[0].bias[chosen])
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(student[1], name), getattr(teacher[1], name)[chosen])
    columns = [4 * channel + place for channel in chosen for place in range(4)]  # four pixels of each channel
    assert torch.equal(student[4].weight, teacher[4].weight[:, columns])
    assert torch.equal(student[4].bias, teacher[4].bias)
    assert student[1].num_features == student[0].out_channels == 2
    assert student[4].in_features == 8
    assert {name: origin.how for name, origin in derived.origins.items() if origin.how != "sliced"} == {
        "1.num_batches_tracked": "copied",
        "4.bias": "copied",
    }
    assert derived.origins["0.weight"].teacher_shape == (4, 1, 3, 3)


def test_norms_of_all_filters_that_make_a_shared_channel_are_summed_and_the_norm_can_be_l2():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            x = self.one(x)
            return self.out(x + self.two(x))

    teacher = Residual()
    with torch.no_grad():
        teacher.one.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]))
        teacher.two.weight.copy_(torch.tensor([[3.0, 3.0, 0.0], [5.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    # sums of L1 norms 7, 8, 3; of L2 norms 5.24, 8, 3
    student = derive(teacher, torch.randn(2, 2), how="width", params="65%").model
    assert torch.equal(student.one.weight, teacher.one.weight[:2])
    with torch.no_grad():
        teacher.one.weight[2, 1] = 3.5  # 7, 8, 4.5 and 5.24, 8, 4.5
        teacher.two.weight[2] = torch.tensor([1.3, 0.0, 0.0])  # 7, 8, 4.8 and 5.24, 8, 4.8
        teacher.two.weight[0] = torch.tensor([2.0, 2.0, 2.0])  # 7, 8, 4.8 and 4.46, 8, 4.8
    for importance, chosen in (("l1", [0, 1]), ("l2", [1, 2])):
        student = derive(
            teacher, torch.randn(2, 2), how=kdx.students.ByWidth(importance=importance), params="65%"
        ).model
        assert torch.equal(student.one.weight, teacher.one.weight[chosen])
        assert torch.equal(student.two.weight, teacher.two.weight[chosen][:, chosen])
        assert torch.equal(student.out.weight, teacher.out.weight[:, chosen])


@pytest.mark.parametrize("how", ["width", "depth", "depthwise", "low-rank"])
@pytest.mark.parametrize("name", ["torchvision-like resnet", "vit"])
def test_a_student_of_all_of_its_teacher_is_its_teacher(how, name):
    teacher, images = CNNS[name]() if name in CNNS else (kdx.make("model", "vit", dim=16, depth=2), GREY)
    nets.settled(teacher, images)
    student = derive(teacher, images, how=how, params="100%")
    assert student.model is not teacher
    with torch.no_grad():
        assert torch.equal(student.model(images), teacher(images))
    assert {origin.how for origin in student.origins.values()} == {"copied"}


def test_heads_stay_and_keep_their_strongest_inner_channels():
    teacher = nets.TextEncoder(dim=16, heads=4)
    inputs = (nets.TOKENS, nets.MASK)
    derived = derive(teacher, inputs, how="width", params="40%")
    old, new = teacher.encoder.layers[1].self_attn, derived.model.encoder.layers[1].self_attn
    dim = new.embed_dim
    assert (new.num_heads, new.head_dim, dim % 4) == (4, dim // 4, 0)
    assert dim < 16
    norms = old.in_proj_weight.detach().abs().sum(1)
    query_key, value = (norms[:16] + norms[16:32]).view(4, 4), norms[32:].view(4, 4)
    rows = [
        torch.sort(scores.topk(dim // 4, dim=1).indices).values + 4 * torch.arange(4)[:, None]
        for scores in (query_key, value)
    ]
    chosen = torch.cat([rows[0].ravel(), 16 + rows[0].ravel(), 32 + rows[1].ravel()])
    stream = _stream(teacher.position, derived.model.position)
    assert torch.equal(new.in_proj_weight, old.in_proj_weight[chosen][:, stream])
    assert torch.equal(new.in_proj_bias, old.in_proj_bias[chosen])
    assert torch.equal(new.out_proj.weight, old.out_proj.weight[stream][:, rows[1].ravel()])
    assert torch.equal(derived.model.embedding.weight, teacher.embedding.weight[:, stream])
    assert derived.model.embedding.weight.shape[0] == 50
    assert torch.equal(derived.model.encoder.layers[1].norm1.weight, teacher.encoder.layers[1].norm1.weight[stream])
    for mode in (True, False):
        assert derived.model.train(mode)(*inputs).shape == (4, 5)


def _stream(teacher, student):
    """Which channels along the last dimension of the teacher's tensor the student's are."""
    same = (student.unsqueeze(-1) == teacher.unsqueeze(-2)).flatten(0, -3).all(0)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def test_tied_weights_shrink_together_and_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.out = nn.Linear(8, 9, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, ids):
            return self.out(torch.relu(self.body(self.embedding(ids))))

    student = derive(Tied(), torch.zeros(2, 3, dtype=torch.long), how="width", params="60%").model
    assert student.out.weight is student.embedding.weight
    assert student.out.in_features == student.embedding.embedding_dim == student.body.out_features < 8


def test_a_module_with_two_names_and_a_third_one_tied_to_it_stay_one_weight():
    # the second name holds the new weight already, which may have the id of a weight that is gone
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.first = nn.Linear(4, 8), nn.Linear(8, 8)
            self.again, self.tied, self.out = self.first, nn.Linear(8, 8), nn.Linear(8, 3)
            self.tied.weight = self.first.weight

        def forward(self, x):
            for layer in (self.enter, self.first, self.again, self.tied):
                x = layer(x).relu()
            return self.out(x)

    student = derive(Shared(), torch.zeros(2, 4), how="width", params="40%").model
    assert student.again is student.first
    assert student.tied.weight is student.first.weight
    assert student.first.weight.shape == (3, 3)


def test_what_cannot_be_narrowed_is_named_and_the_rest_still_is():
    derived = derive(nets.ResNet(groups=2), nets.IMAGES, how="width", params="50%")
    assert ("layer1.0.conv2 (Conv2d)", "a convolution in 2 groups") in [(k.module, k.reason) for k in derived.kept]
    assert derived.model.layer1[0].conv2.groups == 2
    derived = derive(nets.OwnViT(), nets.IMAGES, how="width", params="60%")
    held = [item.module for item in derived.kept if "holds sizes" in item.reason]
    assert held == [f"blocks.{k}.attn (OwnAttention)" for k in range(3)]
    assert derived.model.blocks[0].mlp[0].out_features < 64
    assert derived.model.blocks[0].attn.qkv.weight.shape == (48, 16)
    with pytest.raises(StudentError, match=r"2,405 params to 2,405 params.*rnn \(LSTM\): lstm mixes or fixes"):
        derive(nets.Recurrent(), torch.randn(4, 6, 8), how="width", params="50%")


def test_only_the_modules_whose_code_holds_a_size_keep_their_channels():
    class Rigid(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x):
            return self.linear(x.view(-1, 6))

    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Rigid(), Rigid(), nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    derived = derive(net, torch.zeros(2, 4), how="width", params="70%")
    assert [tuple(p.shape) for p in derived.model.parameters() if p.dim() > 1][:3] == [(6, 4), (6, 6), (6, 6)]
    assert derived.model[4].out_features == derived.model[6].in_features < 20
    assert derived.edit.pinned == ["2", "3"]  # not every nn.Linear, although it is one that failed


def test_a_model_whose_own_code_holds_sizes_is_refused_with_the_reason():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 2)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 16))

    with pytest.raises(StudentError, match=r"100.0% to 100% \(kept as they are: fc \(Linear\): its code holds sizes"):
        derive(Fixed(), torch.zeros(2, 1, 4, 4), how="width", params="60%")


@pytest.mark.parametrize("name", ["Bert", "DistilBert"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hugging_face_encoder_is_narrowed_shortened_and_factorised(name):
    transformers = pytest.importorskip("transformers")
    shared = {"vocab_size": 50, "max_position_embeddings": 16, "num_labels": 5}
    if name == "Bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        config = transformers.BertConfig(**sizes, **shared)
    else:
        config = transformers.DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, **shared)
    teacher = getattr(transformers, f"{name}ForSequenceClassification")(config)
    inputs = {"input_ids": nets.TOKENS, "attention_mask": (~nets.MASK).long()}
    for how in ("width", "depth", "low-rank"):
        derived = derive(teacher, inputs, how=how, params="60%")
        assert call(derived.model.train(), inputs).logits.shape == (4, 5)
        if how == "width":
            held = [item for item in derived.kept if "heads" in item.reason]
            assert len(held) == 3
            assert all("SelfAttention" in item.module for item in held)
