import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lcde.errors import InputError
from lcde.models.encoder import LARGEST_SCORE, Encoder, SharedDropout, attend, require_divisible
from lcde.models.lcenet import LCENet
from lcde.models.pcenet import HIDDEN, PCENet
from lcde.models.tokens import distinct, num_distinct, take, tokens

D, K, LAYERS, HEADS, WIDTH = 8, 4, 2, 4, 12
SIZES = {"num_layers": LAYERS, "nhead": HEADS, "dim_feedforward": WIDTH, "dropout": 0.3}


def plain_encoder(width):
    layer = nn.TransformerEncoderLayer(width, HEADS, WIDTH, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def with_similarities(x):
    """[x ; similarities to the whole set], one token at a time."""
    return torch.stack([torch.stack([torch.cat([face, faces @ face]) for face in faces]) for faces in x])


class PlainLCENet(nn.Module):
    """LCENet as section 1 of the design words it."""

    def __init__(self):
        super().__init__()
        self.encoder = plain_encoder(D + K)
        self.classifier = nn.Sequential(nn.Linear(2 * (D + K), D), nn.PReLU(), nn.Linear(D, 2))

    def forward(self, x):
        encoded = self.encoder(with_similarities(x))
        centre = encoded[:, :1].expand_as(encoded)
        return self.classifier(torch.cat([centre, encoded], dim=-1))


class PlainPCENet(nn.Module):
    """PCENet as section 1 of the design words it."""

    def __init__(self):
        super().__init__()
        self.encoder = plain_encoder(D + 2 * K)
        self.adjust_dim = nn.Sequential(nn.Linear(D + 2 * K, D), nn.PReLU(), nn.Linear(D, D))
        self.classifier = nn.Sequential(
            nn.Linear(4 * D, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, HIDDEN), nn.PReLU(), nn.Linear(HIDDEN, 2)
        )

    def forward(self, x):
        h = self.adjust_dim(self.encoder(with_similarities(x)))
        return self.classifier(torch.cat([x[:, 0], h[:, 0], x[:, K], h[:, K]], dim=-1))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomised(module):
    """All parameters random, biases and norms too, so that each of them matters."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4 if parameter.numel() < HIDDEN else 0.05)
    return module.eval()


PAIRS = {
    "encoder": (lambda: Encoder(D + K, **SIZES), lambda: plain_encoder(D + K), (3, 5, D + K)),
    "lcenet": (lambda: LCENet(D, K, **SIZES), PlainLCENet, (3, K, D)),
    "pcenet": (lambda: PCENet(D, K, **SIZES), PlainPCENet, (3, 2 * K, D)),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request):
    """A network of the project, its plain formulation, an input."""
    network, plain, shape = request.param
    return randomised(network()), plain().eval(), torch.randn(shape)


def test_network_equals_its_plain_formulation(pair):
    network, plain, x = pair
    plain.load_state_dict(network.state_dict())
    expected, actual = plain(x), network(x)
    assert expected.std() > 0.05
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_plain_weights_load_by_name(pair):
    network, plain, x = pair
    network.load_state_dict(randomised(plain).state_dict())
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only(pair):
    network, _, x = pair
    evaluated = network(x)
    assert torch.equal(network(x), evaluated)
    network.train()
    assert not torch.allclose(network(x), network(x))
    assert torch.equal(network.eval()(x), evaluated)


def test_inference_equals_training_without_dropout(pair):
    network, _, x = pair
    with torch.inference_mode():
        inferred = network(x)
    torch.testing.assert_close(inferred, network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("largest", [1, LARGEST_SCORE, 200, -200])
def test_attention_is_that_of_pytorch(dtype, training, largest):
    """Scores near ``largest`` for all keys of a query: exp alone would overflow, or leave nothing to divide by."""
    query, key, value = (torch.randn(2, 3, tokens, 7) for tokens in (2, 5, 5))
    key[..., 0], query[..., 0] = 2, largest * 7**0.5 / 2
    query, key, value = (x.to(dtype) for x in (query, key, value))
    expected = F.scaled_dot_product_attention(*(x.float() for x in (query, key, value)))
    actual = attend(*(x.requires_grad_(training) for x in (query, key, value)), None)
    assert actual.dtype == dtype
    if dtype == torch.bfloat16:  # of scores that large, 8 bits leave nothing but their order
        expected = ((query * 7**-0.5) @ key.mT).softmax(dim=-1).to(dtype).float() @ value.float()
    torch.testing.assert_close(actual.float(), expected, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("largest", [1, LARGEST_SCORE, 200, -200])
def test_gradients_of_attention_are_those_of_pytorch(largest):
    inputs = [torch.randn(2, 3, tokens, 7) for tokens in (2, 5, 5)]
    inputs[1][..., 0], inputs[0][..., 0] = 2, largest * 7**0.5 / 2
    inputs = [x.requires_grad_() for x in inputs]
    results = attend(*inputs, None), F.scaled_dot_product_attention(*inputs)
    upstream = torch.randn_like(results[0])
    ours, theirs = (torch.autograd.grad(result, inputs, upstream) for result in results)
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_stand_for_none_do_not_count_however_large_their_score(dtype):
    query, key = torch.full((1, 1, 1, 4), 20.0, dtype=dtype), torch.tensor([10.0, 0.0, 0.0], dtype=dtype)
    value, copies = torch.tensor([5.0, 1.0, 4.0], dtype=dtype), torch.tensor([[0, 2, 1]], dtype=dtype)
    key, value = (x[None, None, :, None].expand(1, 1, 3, 4) for x in (key, value))
    torch.testing.assert_close(attend(query, key, value, copies).float(), torch.full((1, 1, 1, 4), 2.0))


def test_query_tokens_come_out_as_among_all_tokens():
    encoder, x = randomised(Encoder(D + K, **SIZES)), torch.randn(3, 5, D + K)
    queries = torch.tensor([[0, 3], [4, 4], [2, 1]])
    torch.testing.assert_close(encoder(x, queries), take(encoder(x), queries), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(x, queries[0]), encoder(x)[:, [0, 3]], rtol=1e-4, atol=1e-5)


def test_tokens_at_positions_are_those_among_all():
    neighbours, positions = torch.randn(3, 5, D), torch.tensor([[0, 3], [4, 4], [2, 1]])
    every = tokens(neighbours)
    torch.testing.assert_close(tokens(neighbours, positions[0]), every[:, [0, 3]])
    torch.testing.assert_close(tokens(neighbours, positions), torch.stack([every[i, positions[i]] for i in range(3)]))


@pytest.mark.parametrize("training", [False, True])
def test_a_token_stands_for_its_copies(training):
    encoder, x = randomised(Encoder(D + K, **SIZES)), torch.randn(2, 4, D + K)
    copies = torch.tensor([[2, 1, 3, 0], [1, 1, 1, 2]])
    with torch.set_grad_enabled(training):
        actual = encoder(x, None, copies.float())
        for row, times in enumerate(copies):
            expected = encoder(x[row].repeat_interleave(times, dim=0)[None])[0]
            repeated = actual[row].repeat_interleave(times, dim=0)
            torch.testing.assert_close(repeated, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("queries", [None, torch.tensor([0, 3])])
@pytest.mark.parametrize("copies", [None, torch.tensor([[2.0, 1, 3, 0], [1, 1, 1, 2]])])
@pytest.mark.parametrize("width", [32, 36])  # heads of 8 and of 9 channels
def test_attention_for_gpus_is_that_for_cpus(queries, copies, width):
    layer, x = randomised(Encoder(width, 1, 4, 8, 0.0)).layers[0], torch.randn(2, 4, width)
    with torch.no_grad():
        expected = layer._attention(x, queries, copies)
        torch.testing.assert_close(layer._fused_attention(x, queries, copies), expected, rtol=1e-4, atol=1e-5)


def test_attention_for_gpus_has_the_gradients_of_that_for_cpus():
    layer, x = randomised(Encoder(36, 1, 4, 8, 0.0)).layers[0], torch.randn(2, 4, 36)
    weights = list(layer.self_attn.parameters())
    expected, actual = (
        torch.autograd.grad(attention(x, None, None).square().sum(), weights)
        for attention in (layer._attention, layer._fused_attention)
    )
    for theirs, ours in zip(expected, actual, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4))
def test_distinct_faces_are_each_named_once(rows):
    faces = torch.tensor(rows)
    positions, copies, number = distinct(faces)
    assert num_distinct(faces).tolist() == [len(set(row)) for row in rows]
    assert positions.shape[1] == max(len(set(row)) for row in rows)
    for row, *found in zip(rows, positions.tolist(), copies.tolist(), number.tolist(), strict=True):
        named, count, of = found
        real = [row[position] for position, times in zip(named, count, strict=True) if times]
        assert sorted(real) == sorted(set(row))
        assert all(row.index(row[position]) == position for position in named[: len(real)])
        assert [times for times in count if times] == [row.count(face) for face in real]
        assert [row[named[each]] for each in of] == row


def test_shared_dropout_drops_the_same_channels_of_all_tokens():
    x = torch.randn(4, 5, 400)
    dropped = SharedDropout(0.25).train()(x)
    kept = dropped[:, :1] != 0
    torch.testing.assert_close(dropped, x * kept / 0.75)
    assert not torch.equal(kept[0], kept[1])
    assert kept.float().mean() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("training", [False, True])
def test_shared_dropout_adds_to_a_residual(training):
    dropout, x, residual = SharedDropout(0.5).train(training), torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    dropped, added = (torch.manual_seed(1) and dropout(x, *others) for others in ((), (residual,)))
    torch.testing.assert_close(added, residual + dropped)


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_shared_dropout_passes_through_where_it_has_nothing_to_do(probability):
    x = torch.randn(2, 3, 4)
    assert torch.equal(SharedDropout(probability).train(probability == 0)(x), x)


def test_probabilities_are_those_of_class_1():
    lcenet, pcenet, x = randomised(LCENet(D, K, **SIZES)), randomised(PCENet(D, K, **SIZES)), torch.randn(3, 2 * K, D)
    torch.testing.assert_close(lcenet.connectivity(x[:, :K]), lcenet(x[:, :K]).softmax(-1)[..., 1])
    faces = torch.arange(2 * K).expand(3, -1)
    torch.testing.assert_close(pcenet.edge_probability(x, faces), pcenet(x).softmax(-1)[..., 1])


def test_shared_neighbours_are_computed_once_with_the_same_answer():
    pcenet, features = randomised(PCENet(D, K, **SIZES)), torch.randn(7, D)
    faces = torch.tensor([[0, 1, 2, 3, 1, 0, 2, 4], [5, 6, 0, 1, 2, 3, 4, 6], [3, 4, 5, 6, 3, 4, 5, 6]])
    tokens = []
    pcenet.encoder.layers[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    actual = pcenet.edge_probability(features[faces], faces)
    assert tokens == [7]
    torch.testing.assert_close(actual, pcenet(features[faces]).softmax(-1)[:, 1], rtol=1e-4, atol=1e-5)
    assert actual.std() > 1e-3


@given(st.integers(1, 10), st.booleans(), st.integers(2, 40), st.integers(0, 12))
@example(feature_dim=1, multiple=True, k=4, nhead=3)  # 3 and 6 fit, 3 is nearer
def test_heads_that_do_not_fit_name_the_nearest_k_that_does(feature_dim, multiple, k, nhead):
    feature_dim *= max(nhead, 1) if multiple else 1
    fitting = [
        other
        for other in range(2, 200)
        if nhead and (feature_dim + other) % nhead == 0 and (feature_dim + 2 * other) % nhead == 0
    ]
    if k in fitting:
        require_divisible(feature_dim, k, nhead)
        return
    with pytest.raises(InputError, match=f"nhead={nhead} .*feature_dim={feature_dim} and dataset.k={k};") as error:
        require_divisible(feature_dim, k, nhead)
    if fitting:
        named = int(str(error.value).rsplit("dataset.k=", 1)[1].rstrip("."))
        assert named in fitting
        assert abs(named - k) == min(abs(other - k) for other in fitting)
    else:
        assert "choose a model.nhead" in str(error.value)
